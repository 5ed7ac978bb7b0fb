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
    """The places of n comparisons in features [P, G, D].

    Attributes:
        prompts: n rows, the prompts.
        first: n places within the group.
        second: n places within the same group, of a completion with other features.
    """

    prompts: list[int]
    first: list[int]
    second: list[int]

    def __len__(self) -> int:
        """How many comparisons there are."""
        return len(self.prompts)

    def differences(self, features: Tensor) -> Tensor:
        """What an estimator learns from, z = phi(x, a) - phi(x, a'): features [P, G, D] -> [n, D]."""
        return features[self.prompts, self.first] - features[self.prompts, self.second]


@dataclass(frozen=True)
class Candidates:
    """Checked completions, on the CPU.

    Attributes:
        features: [P, G, D] float64; 0 for completions that may not be chosen.
        comparable: [P, G, G], whether two completions may be compared. Symmetric. All completions of a group that may
            be chosen at all have a partner, or none has: being different is what is left of being equal.
    """

    features: Tensor
    comparable: Tensor

    @classmethod
    def checked(cls, features: Tensor, dim: int) -> "Candidates":
        """Takes what `PairSelection.select` takes, and raises its errors."""
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
        _, kind = torch.unique(features.flatten(0, 1), dim=0, return_inverse=True)
        kind = kind.view_as(usable)
        differ = kind.unsqueeze(2) != kind.unsqueeze(1)
        return cls(features, differ & usable.unsqueeze(2) & usable.unsqueeze(1))


class PairSelection(ABC):
    """A strategy: current rollouts -> the comparisons to have labelled."""

    uses_uncertainty: bool = False
    """Whether it reads the estimator's inverse Hessian."""

    def select(self, features: Tensor, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator) -> Pairs:
        """Chooses comparisons. The same arguments and state of `rng` give the same choice; ties go to the lower place.

        Args:
            features: [P, G, D], any float dtype, one group of completions a prompt. NaN marks a completion that may not
                be chosen: truncated, not scorable, or known to be another one's copy. Two completions with the same
                features are never compared, as that teaches nothing.
            estimator: of D features; it is not changed.
            n_pairs: how many to choose, above P as well. Fewer come back where there are not so many, and at most P
                from the strategies that ask once a prompt: all but `UncertainPairs`.
            rng: source of what the strategy leaves to chance.

        Returns:
            At most `n_pairs` different comparisons.

        Raises:
            UserError: `n_pairs` is below 1; features of another shape, or infinite; an estimator that does not know
                its uncertainty, where the strategy needs it.
        """
        if n_pairs < 1:
            raise UserError(f"pairs to choose: got {n_pairs}, expected at least 1")
        return self._choose(Candidates.checked(features, estimator.dim), estimator, n_pairs, rng)

    @abstractmethod
    def _choose(
        self, candidates: Candidates, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator
    ) -> Pairs:
        """`select`, after its checks."""

    def _with_uncertainty(self, estimator: PreferenceEstimator) -> UncertainEstimator:
        """The estimator, or an error where it does not know H^{-1}."""
        if not isinstance(estimator, UncertainEstimator):
            raise UserError(
                f"{type(self).__name__}: got {type(estimator).__name__}, expected an estimator that knows its "
                "uncertainty; use OnlineMirrorDescent, or a strategy that does without, such as RandomPairs"
            )
        return estimator


def random_prompts(candidates: Candidates, n_pairs: int, rng: np.random.Generator) -> list[int]:
    """Up to `n_pairs` different prompts with something to compare, every such set and order equally likely."""
    askable = candidates.comparable.any(dim=2).any(dim=1).nonzero().flatten().tolist()
    return rng.permutation(askable)[:n_pairs].tolist()


class RandomPairs(PairSelection):
    """Random prompts, and in each a random pair: what everything else is measured against.

    All pairs of a prompt that may be compared are equally likely. With two completions a prompt, only the prompts are
    left to chance.
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

    The paper asks for one pair a round. Here a batch is chosen one by one. H gains s(z' theta_new) z z' from a pair,
    where s(m) = sigmoid(m) (1 - sigmoid(m)) and theta_new is the estimate after the label, which is not known yet; at
    the current theta the weight is s = s(z' theta), right up to what one round moves theta. So after each pick

        H^{-1} <- H^{-1} - s / (1 + s q) v v',   v = H^{-1} z,   q = z' v,

    and the q_j = z_j' H^{-1} z_j of all other pairs fall by s / (1 + s q) (z_j' v)^2: near copies of the picked pair
    fall behind, and orthogonal ones stay. Several pairs of one prompt may be chosen, but no pair twice. Nothing is
    left to chance.

    Degenerate cases: with one pair a round, the paper's rule. Before the first update, where H = lambda I, the first
    pick is the pair of features that lie farthest apart.

    Costs O(P G D (D + G)) for the first quadratic forms and O(D^2 + P G (D + G)) a pick.
    """

    uses_uncertainty = True

    def _choose(
        self, candidates: Candidates, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator
    ) -> Pairs:
        estimator = self._with_uncertainty(estimator)
        inverse, theta = estimator.inverse.clone(), estimator.theta
        # Differences do not change by this, and the forms below lose no digits to what all of a group have in common.
        features = candidates.features - candidates.features.mean(dim=1, keepdim=True)
        products = features @ inverse @ features.mT
        norms = products.diagonal(dim1=1, dim2=2)
        squared = norms.unsqueeze(2) + norms.unsqueeze(1) - 2.0 * products
        left = candidates.comparable.triu()  # [P, G, G], so that a pair is met once
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
            gain = weight / (1.0 + weight * (z @ v))
            inverse.addr_(v, v, alpha=-gain.item())
            shift = features @ v
            squared -= gain * (shift.unsqueeze(2) - shift.unsqueeze(1)).square()
        return Pairs(*([row[part] for row in chosen] for part in range(3)))


class GreedySelection(PairSelection):
    """The completion with the highest reward phi' theta, against one that the subclass decides on.

    At most one pair a prompt; the prompts are left to chance.
    """

    def _choose(
        self, candidates: Candidates, estimator: PreferenceEstimator, n_pairs: int, rng: np.random.Generator
    ) -> Pairs:
        prompts = random_prompts(candidates, n_pairs, rng)
        features, comparable = candidates.features[prompts], candidates.comparable[prompts]
        rewards = estimator.reward(features)
        first = rewards.masked_fill(~comparable.any(dim=2), -torch.inf).argmax(dim=1)
        rows = torch.arange(len(prompts))
        worth = self._worth(features, rewards, features[rows, first], estimator)
        second = worth.masked_fill(~comparable[rows, first], -torch.inf).argmax(dim=1)
        return Pairs(prompts, first.tolist(), second.tolist())

    @abstractmethod
    def _worth(self, features: Tensor, rewards: Tensor, best: Tensor, estimator: PreferenceEstimator) -> Tensor:
        """What the second completion maximises: [n, G, D], [n, G], features [n, D] of the first -> [n, G]."""


class BestAgainstSecond(GreedySelection):
    """The two completions with the highest current reward phi' theta; a baseline of arXiv 2502.07193.

    Copies of the best are passed over. Before the first update all rewards are 0, and these are the two at the lowest
    places.
    """

    def _worth(self, features: Tensor, rewards: Tensor, best: Tensor, estimator: PreferenceEstimator) -> Tensor:
        return rewards


class BestAgainstWorst(GreedySelection):
    """The completions with the highest and the lowest current reward phi' theta; a baseline of arXiv 2502.07193.

    With two completions a prompt, and before the first update, where all rewards are 0, the same as
    `BestAgainstSecond`.
    """

    def _worth(self, features: Tensor, rewards: Tensor, best: Tensor, estimator: PreferenceEstimator) -> Tensor:
        return -rewards


class OptimisticPairs(GreedySelection):
    """The best completion a against the one that may be better (arXiv 2502.07193, deployment setting).

    a' = argmax of phi(a')' theta + 2 beta ||phi(a') - phi(a)|| in the norm of H^{-1}. The paper lets a' be a itself;
    that comparison teaches nothing, so here the features of a' differ from those of a.

    Degenerate cases: beta = 0 is `BestAgainstSecond`; for beta towards infinity a' is the completion about whose
    difference from a least is known.
    """

    uses_uncertainty = True

    def __init__(self, beta: float) -> None:
        """Takes the weight of the uncertainty, in units of the reward.

        Raises:
            UserError: it is negative or not finite.
        """
        if not 0.0 <= beta < float("inf"):
            raise UserError(f"OptimisticPairs beta: got {beta}, expected a finite number that is not negative")
        self.beta = beta

    def _worth(self, features: Tensor, rewards: Tensor, best: Tensor, estimator: PreferenceEstimator) -> Tensor:
        estimator = self._with_uncertainty(estimator)
        return rewards + 2.0 * self.beta * estimator.uncertainty(features - best.unsqueeze(1))
