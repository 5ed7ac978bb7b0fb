"""One round of online learning: choose comparisons of fresh completions, have them labelled, learn."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.distributed import from_first_rank, gather_objects
from grpovi_lightning.errors import at_least_one
from grpovi_lightning.randomness import selection_generator
from grpovi_lightning.rewards.base import RewardUpdate
from grpovi_lightning.rewards.online.estimator import PreferenceEstimator, UncertainEstimator
from grpovi_lightning.rewards.online.mirror_descent import MirrorDescent
from grpovi_lightning.rewards.online.oracle import Answers, Oracle, Question
from grpovi_lightning.rewards.online.selection import Pairs, PairSelection, RandomPairs
from grpovi_lightning.rewards.user_code import call_user_code
from grpovi_lightning.structures import Rollout


class OnlineLearning:
    """Rounds of comparisons: every few policy steps, comparisons of that step's completions are labelled and learned.

    A question that the oracle does not answer stays open, and the estimator as it is. The first round that finds its
    answer learns from it.
    """

    def __init__(
        self,
        oracle: Oracle,
        selection: PairSelection | None = None,
        every_n_steps: int = 4,
        pairs_per_round: int = 16,
        max_labels: int | None = None,
    ) -> None:
        """Compose a round.

        Args:
            oracle: labels comparisons.
            selection: which comparisons are asked for; default `RandomPairs`.
            every_n_steps: policy steps from round to round; the first round follows the first step.
            pairs_per_round: the most comparisons asked for in a round; most strategies ask at most once a prompt.
            max_labels: the most labels asked for in the run, open questions included; None: no limit.

        Raises:
            UserError: a number is below 1.
        """
        counts = {"every_n_steps": every_n_steps, "pairs_per_round": pairs_per_round, "max_labels": max_labels}
        at_least_one("online learning ", **counts)
        self.oracle, self.selection = oracle, selection or RandomPairs()
        self.every_n_steps, self.pairs_per_round, self.max_labels = every_n_steps, pairs_per_round, max_labels
        self.n_labels = 0
        self.pending: dict[str, Tensor] = {}

    def check(self, estimator: PreferenceEstimator) -> None:
        """Raise `UserError` if no round can work with this class of estimator; its number of features is no matter."""
        two = torch.tensor([[0.0, 1.0]])[:, :, None].expand(1, 2, estimator.dim)
        self.selection.select(two, estimator, 1, selection_generator(0, 0))
        self.oracle.check()

    def is_due(self, step: int) -> bool:
        """Tell whether a round follows policy step `step`."""
        return step % self.every_n_steps == 0 and (bool(self.pending) or self._allowed() > 0)

    def run(
        self,
        estimator: PreferenceEstimator,
        rollout: Rollout,
        features: Tensor,
        seed: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> RewardUpdate:
        """Run one round with the completions of all ranks; every rank gets the same estimate.

        The rollout is that of a step on this rank, with features [B, D] on the CPU. The round waits for answers no
        longer than until `stopping` says that the run was asked to stop.
        """
        rollout, features = _of_all_ranks(rollout, features)
        grouped = rollout.grouped(features)
        pairs = from_first_rank(lambda: self._choose(estimator, grouped, selection_generator(seed, rollout.step)))
        size, places = rollout.group_size, zip(pairs.prompts, pairs.first, pairs.second, strict=True)
        questions = Question.about(rollout, [(p * size + a, p * size + b) for p, a, b in places])
        unanswered = list(self.pending)

        def ask() -> tuple[Answers, bool]:
            name = f"oracle {type(self.oracle).__name__}"
            found = call_user_code(name, rollout, self.oracle.answer, rollout, questions, unanswered, seed)
            return found, stopping()

        answers, stop = from_first_rank(ask)
        while answers.waiting and not stop:
            answers, stop = from_first_rank(ask)
        names = [question.name for question in questions]
        # Clones: a view would keep the features of the whole round in memory while one question is open.
        self.pending |= {name: z.clone() for name, z in zip(names, pairs.differences(grouped).double(), strict=True)}
        answered = [name for name in self.pending if name in answers.labels]
        metrics = self._learn(estimator, answered, [answers.labels[name] for name in answered])
        if answers.gold is not None and questions:
            metrics[keys.ONLINE_REGRET] = _regret(rollout.grouped(torch.tensor(answers.gold)), pairs)
        return RewardUpdate(
            metrics=metrics | self.progress() | {keys.ONLINE_STATE_BYTES: float(estimator.state_bytes)},
            changed=bool(answered),
            problems=answers.problems,
        )

    def progress(self) -> dict[str, float]:
        """Return the number of labels learned from, and of questions still open."""
        return {keys.ONLINE_LABELS: float(self.n_labels), keys.ONLINE_UNANSWERED: float(len(self.pending))}

    def _allowed(self) -> int:
        if self.max_labels is None:
            return self.pairs_per_round
        return min(self.pairs_per_round, self.max_labels - self.n_labels - len(self.pending))

    def _choose(self, estimator: PreferenceEstimator, features: Tensor, rng: np.random.Generator) -> Pairs:
        if self._allowed() < 1:
            return Pairs([], [], [])
        pairs = self.selection.select(features, estimator, self._allowed(), rng)
        # Random order within each pair: a labeller must not be able to tell which completion the model prefers.
        swap = rng.random(len(pairs)) < 0.5
        places = zip(pairs.first, pairs.second, swap.tolist(), strict=True)
        ordered = [(second, first) if swapped else (first, second) for first, second, swapped in places]
        return Pairs(pairs.prompts, [first for first, _ in ordered], [second for _, second in ordered])

    def _learn(self, estimator: PreferenceEstimator, names: Sequence[str], labels: Sequence[int]) -> dict[str, float]:
        """Evaluate the estimate on labels that are new to it, then learn from them; {} where there are none."""
        if not names:
            return {}
        z = torch.stack([self.pending[name] for name in names])
        y = torch.tensor(labels, dtype=torch.float64)
        logits = estimator.reward(z)
        correct = torch.where(logits == 0.0, 0.5, ((logits > 0.0) == (y == 1.0)).double())
        metrics = {
            keys.ONLINE_PAIR_ACCURACY: float(correct.mean()),
            keys.ONLINE_CROSS_ENTROPY: float(binary_cross_entropy_with_logits(logits, y)),
        }
        if self.selection.uses_uncertainty and isinstance(estimator, UncertainEstimator):
            metrics[keys.ONLINE_UNCERTAINTY] = float(estimator.uncertainty(z).mean())
        began = time.perf_counter()
        estimator.update(z, y)
        metrics[keys.ONLINE_UPDATE_SECONDS] = time.perf_counter() - began
        if isinstance(estimator, MirrorDescent):
            metrics[keys.ONLINE_KAPPA] = estimator.kappa
        for name in names:
            del self.pending[name]
        self.n_labels += len(names)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"n_labels": self.n_labels, "pending": dict(self.pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_labels, self.pending = state["n_labels"], dict(state["pending"])


def _of_all_ranks(rollout: Rollout, features: Tensor) -> tuple[Rollout, Tensor]:
    """Return the completions and features [B, D] of all ranks, on the CPU, in the order of a single process."""
    parts = gather_objects((rollout.to("cpu"), features.cpu()))
    if len(parts) == 1:
        return rollout, features
    return Rollout.concatenate([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _regret(gold: Tensor, pairs: Pairs) -> float:
    """Return the mean over pairs of the group's best gold reward minus the mean of the two compared; gold [P, G]."""
    compared = (gold[pairs.prompts, pairs.first] + gold[pairs.prompts, pairs.second]) / 2
    return float((gold[pairs.prompts].amax(dim=1) - compared).mean())
