"""Which comparisons to ask for, out of the completions that the policy has just sampled."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.online.estimator import PreferenceEstimator, UncertainEstimator


@dataclass(frozen=True)
class Pairs:
    """n comparisons, as indices into features [P, G, D].

    Attributes:
        prompts: n indices of prompts, 0 to P - 1.
        first: n indices of completions within the group, 0 to G - 1.
        second: n indices within the same group, of completions with other features.
    """

    prompts: list[int]
    first: list[int]
    second: list[int]

    def __len__(self) -> int:
        return len(self.prompts)

    def differences(self, features: Tensor) -> Tensor:
        """Return z = phi(x, a) - phi(x, a'), from which an estimator learns: features [P, G, D] -> [n, D]."""
        return features[self.prompts, self.first] - features[self.prompts, self.second]


@dataclass(frozen=True)
class Candidates:
    """Checked completions, on the CPU.

    Attributes:
        features: [P, G, D] float64; 0 for completions that may not be chosen.
        comparable: [P, G, G] bool, whether two completions of a group may be compared: both may be chosen, and their
            features differ. Symmetric. A group of copies has no pair; in any other every completion that may be chosen
            has a partner.
    """

    features: Tensor
    comparable: Tensor

    @classmethod
    def checked(cls, features: Tensor, dim: int) -> "Candidates":
        """Check features as `PairSelection.select` takes them, and raise its errors."""
        if features.ndim != 3 or features.shape[2] != dim:
            raise UserError(
                f"features of completions: got shape {tuple(features.shape)}, expected (prompts, completions a prompt, "
                f"{dim}); use the features that the estimator was made for"
            )
        if features.shape[1] < 2:
            raise UserError(
                f"completions a prompt: got {features.shape[1]}, expected at least 2; one alone compares with nothing"
            )
        features = features.detach().to("cpu", torch.float64)
        infinite = features.isinf().any(dim=2).nonzero().tolist()
        if infinite:
            prompt, member = infinite[0]
            raise UserError(
                f"features of completion {member} of prompt {prompt}: got an infinite value, expected finite numbers, "
                "or NaN to leave the completion out; look at the feature model and its dtype"
            )
        usable = ~features.isnan().any(dim=2)
        features = features.masked_fill(~usable.unsqueeze(2), 0.0)
        _, distinct = torch.unique(features.flatten(0, 1), dim=0, return_inverse=True)
        distinct = distinct.view_as(usable)  # [P, G], equal numbers for equal features
        differ = distinct.unsqueeze(2) != distinct.unsqueeze(1)
        return cls(features, differ & usable.unsqueeze(2) & usable.unsqueeze(1))


class PairSelection(ABC):
    """A strategy that chooses which completions of a rollout are compared and labelled."""

    uses_uncertainty: bool = False
    """Whether it reads the estimator's inverse Hessian."""

    def select(self, features: Tensor, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator) -> Pairs:
        """Choose comparisons. The same arguments and state of `rng` give the same choice; ties go to the lower index.

        Args:
            features: [P, G, D], any float dtype, one group of completions a prompt. NaN marks a completion that may not
                be chosen: truncated, not scorable, or known to be a copy of another. Two completions with the same
                features are never compared, as nothing can be learned from that.
            estimator: of D features; it is not changed.
            n_pairs: how many to choose; may exceed P, but only `UncertainPairs` asks more than once a prompt.
            rng: source of random choices, where the strategy makes any.

        Returns:
            Up to `n_pairs` different comparisons; fewer where there are no more.

        Raises:
            UserError: `n_pairs` is below 1; `features` has another shape or infinite values; or the strategy needs the
                uncertainty and the estimator does not know it.
        """
        if n_pairs < 1:
            raise UserError(f"pairs to choose: got {n_pairs}, expected at least 1")
        return self._choose(Candidates.checked(features, estimator.dim), estimator, n_pairs, rng)

    @abstractmethod
    def _choose(
        self, candidates: Candidates, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator
    ) -> Pairs:
        """Choose as `select` does, from checked candidates."""

    def _with_uncertainty(self, estimator: PreferenceEstimator) -> UncertainEstimator:
        """Return the estimator; `UserError` where it does not know H^{-1}."""
        if not isinstance(estimator, UncertainEstimator):
            raise UserError(
                f"{type(self).__name__}: got {type(estimator).__name__}, expected an estimator that knows its "
                "uncertainty; use OnlineMirrorDescent, or a strategy that does without, such as RandomPairs"
            )
        return estimator


def random_prompts(candidates: Candidates, n_pairs: int, rng: np.random.Generator) -> list[int]:
    """Return up to `n_pairs` prompts that have a pair, without replacement and in random order."""
    prompts = candidates.comparable.any(dim=2).any(dim=1).nonzero().flatten().tolist()
    return rng.permutation(prompts)[:n_pairs].tolist()


class RandomPairs(PairSelection):
    """Random prompts, and in each a random pair: the baseline of arXiv 2502.07193.

    All pairs of a prompt that may be compared are equally likely. With two completions a prompt only the prompts are
    random.

    >>> from grpovi_lightning.rewards.online import OnlineMirrorDescent
    >>> features, estimator = torch.tensor([[[0.0], [1.0]]]), OnlineMirrorDescent(dim=1)
    >>> RandomPairs().select(features, estimator, n_pairs=8, rng=np.random.default_rng(1))
    Pairs(prompts=[0], first=[0], second=[1])
    """

    def _choose(
        self, candidates: Candidates, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator
    ) -> Pairs:
        prompts = random_prompts(candidates, n_pairs, rng)
        pairs = [candidates.comparable[prompt].triu().nonzero().tolist() for prompt in prompts]
        chosen = [of_prompt[rng.integers(len(of_prompt))] for of_prompt in pairs]
        return Pairs(prompts, [first for first, _ in chosen], [second for _, second in chosen])


class UncertainPairs(PairSelection):
    """The pairs with the largest ||z|| in the norm of H^{-1} (arXiv 2502.07193, active setting).

    The paper asks for one pair a round. Here the pairs of a round are picked one after the other, and each pick
    down-dates H^{-1} as its label will. A labelled pair adds s'(z' theta_new) z z' to H. The label is not known yet and
    so neither is theta_new; the weight s' at the current theta stands in for it. After each pick

        H^{-1} <- H^{-1} - s' / (1 + s' q) v v',   v = H^{-1} z,   q = z' v,

    and q_j = z_j' H^{-1} z_j of every other pair falls by s' / (1 + s' q) (z_j' v)^2. Near copies of the pick fall
    behind, and orthogonal pairs stay. Several pairs of one prompt may be chosen, but no pair twice. Nothing is random.

    Degenerate cases: with one pair a round, the paper's rule. Before the first update, where H = lambda I, the first
    pick is the two completions whose features are farthest apart:

    >>> from grpovi_lightning.rewards.online import OnlineMirrorDescent
    >>> features, estimator = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]]), OnlineMirrorDescent(dim=2)
    >>> UncertainPairs().select(features, estimator, n_pairs=1, rng=np.random.default_rng(1))
    Pairs(prompts=[0], first=[1], second=[2])

    Costs O(P G D (D + G)) for the first quadratic forms and O(D^2 + P G (D + G)) a pick.
    """

    uses_uncertainty = True

    def _choose(
        self, candidates: Candidates, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator
    ) -> Pairs:
        estimator = self._with_uncertainty(estimator)
        inverse, theta = estimator.inverse.clone(), estimator.theta
        # Centring leaves differences as they are; the quadratic forms then lose no digits to a part that all share.
        features = candidates.features - candidates.features.mean(dim=1, keepdim=True)
        products = features @ inverse @ features.mT
        norms = products.diagonal(dim1=1, dim2=2)
        squared = norms.unsqueeze(2) + norms.unsqueeze(1) - 2.0 * products
        left = candidates.comparable.triu()  # [P, G, G]; the upper half has each pair once
        chosen: list[tuple[int, ...]] = []
        for _ in range(min(n_pairs, int(left.sum()))):
            place = squared.masked_fill(~left, -torch.inf).argmax()
            prompt, first, second = (int(index) for index in torch.unravel_index(place, left.shape))
            left[prompt, first, second] = False
            chosen.append((prompt, first, second))
            z = features[prompt, first] - features[prompt, second]
            v = inverse @ z
            probability = torch.sigmoid(z @ theta)
            weight = probability * (1.0 - probability)
            factor = weight / (1.0 + weight * (z @ v))
            inverse.addr_(v, v, alpha=-factor.item())
            shift = features @ v
            squared -= factor * (shift.unsqueeze(2) - shift.unsqueeze(1)).square()
        return Pairs(*([row[part] for row in chosen] for part in range(3)))


class GreedySelection(PairSelection):
    """The completion with the highest reward phi' theta, against the one with the highest `_score` of a subclass.

    At most one pair a prompt; the prompts are random.
    """

    def _choose(
        self, candidates: Candidates, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator
    ) -> Pairs:
        prompts = random_prompts(candidates, n_pairs, rng)
        features, comparable = candidates.features[prompts], candidates.comparable[prompts]
        rewards = estimator.reward(features)
        first = rewards.masked_fill(~comparable.any(dim=2), -torch.inf).argmax(dim=1)
        rows = torch.arange(len(prompts))
        scores = self._score(features, rewards, features[rows, first], estimator)
        second = scores.masked_fill(~comparable[rows, first], -torch.inf).argmax(dim=1)
        return Pairs(prompts, first.tolist(), second.tolist())

    @abstractmethod
    def _score(self, features: Tensor, rewards: Tensor, best: Tensor, estimator: PreferenceEstimator) -> Tensor:
        """Return what the second completion maximises: [n, G, D], [n, G], features [n, D] of the first -> [n, G]."""


class BestAgainstSecond(GreedySelection):
    """The two completions with the highest current reward phi' theta; a baseline of arXiv 2502.07193.

    Copies of the best are passed over. Before the first update all rewards are 0, and the lowest indices are taken.

    >>> from grpovi_lightning.rewards.online import OnlineMirrorDescent
    >>> features, estimator = torch.tensor([[[1.0], [3.0], [2.0]]]), OnlineMirrorDescent(dim=1)
    >>> estimator.update(torch.tensor([[1.0]]), torch.tensor([1]))  # theta = 0.4
    >>> BestAgainstSecond().select(features, estimator, n_pairs=1, rng=np.random.default_rng(1))
    Pairs(prompts=[0], first=[1], second=[2])
    """

    def _score(self, features: Tensor, rewards: Tensor, best: Tensor, estimator: PreferenceEstimator) -> Tensor:
        return rewards


class BestAgainstWorst(GreedySelection):
    """The completions with the highest and the lowest current reward phi' theta; a baseline of arXiv 2502.07193.

    The same as `BestAgainstSecond` with two completions a prompt, and before the first update, where all rewards are 0.

    >>> from grpovi_lightning.rewards.online import OnlineMirrorDescent
    >>> features, estimator = torch.tensor([[[1.0], [3.0], [2.0]]]), OnlineMirrorDescent(dim=1)
    >>> estimator.update(torch.tensor([[1.0]]), torch.tensor([1]))  # theta = 0.4
    >>> BestAgainstWorst().select(features, estimator, n_pairs=1, rng=np.random.default_rng(1))
    Pairs(prompts=[0], first=[1], second=[0])
    """

    def _score(self, features: Tensor, rewards: Tensor, best: Tensor, estimator: PreferenceEstimator) -> Tensor:
        return -rewards


class OptimisticPairs(GreedySelection):
    """The best completion a against the one most likely to be better (arXiv 2502.07193, deployment setting).

    a' = argmax of phi(a')' theta + 2 beta ||phi(a') - phi(a)|| in the norm of H^{-1}. Departure: the paper lets a' be a
    itself. Nothing can be learned from that, so here the features of a' differ from those of a.

    Degenerate cases: beta = 0 is `BestAgainstSecond`; as beta grows, a' is the completion whose difference from a is
    the most uncertain:

    >>> from grpovi_lightning.rewards.online import OnlineMirrorDescent
    >>> features, estimator = torch.tensor([[[3.0], [2.0], [0.0]]]), OnlineMirrorDescent(dim=1)
    >>> estimator.update(torch.tensor([[1.0]]), torch.tensor([1]))  # theta = 0.4
    >>> [OptimisticPairs(beta).select(features, estimator, 1, np.random.default_rng(1)).second for beta in (0, 1)]
    [[1], [2]]
    """

    uses_uncertainty = True

    def __init__(self, beta: float) -> None:
        """Check the weight.

        Args:
            beta: weight of the uncertainty; the paper's confidence radius.

        Raises:
            UserError: `beta` is negative or not finite.
        """
        if not 0.0 <= beta < float("inf"):
            raise UserError(f"OptimisticPairs beta: got {beta}, expected a finite number that is not negative")
        self.beta = beta

    def _score(self, features: Tensor, rewards: Tensor, best: Tensor, estimator: PreferenceEstimator) -> Tensor:
        estimator = self._with_uncertainty(estimator)
        return rewards + 2.0 * self.beta * estimator.uncertainty(features - best.unsqueeze(1))
