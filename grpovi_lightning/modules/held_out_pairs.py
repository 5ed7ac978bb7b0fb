"""Statistics of held-out preference pairs, over batches and ranks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torchmetrics import CatMetric, MeanMetric

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.distributed import gather_objects

N_BINS = 10
"""Bins of the predicted probability, of equal width from 1/2 to 1."""


@dataclass(frozen=True)
class PairScores:
    """The scores of all held-out pairs, and the lengths of their completions in tokens; [n] each."""

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def length_correlation(self) -> float:
        """Pearson correlation of score and length; 0 where either never differs."""
        scores = torch.cat([self.chosen, self.rejected]).double()
        lengths = torch.cat([self.chosen_lengths, self.rejected_lengths]).double()
        centred = torch.stack([scores - scores.mean(), lengths - lengths.mean()])
        spread = float(centred.square().sum(dim=1).sqrt().prod())
        return float(centred.prod(dim=0).sum()) / spread if spread > 0.0 else 0.0


class HeldOutPairs(nn.Module):
    """Bradley-Terry loss, accuracy and margin of pairs, the moments of all their scores, and how far to trust them."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.accuracy, self.margin = MeanMetric(), MeanMetric(), MeanMetric()
        self.scores = CatMetric()
        self.pairs = nn.ModuleList([CatMetric() for _ in range(4)])
        """Chosen and rejected scores, chosen and rejected lengths."""
        self._subsets: dict[str, list[float]] = defaultdict(list)
        """Name -> accuracy of each of its pairs on this rank."""

    def update(
        self,
        chosen: Tensor,
        rejected: Tensor,
        lengths: Sequence[Tensor] = (),
        subsets: Sequence[str] = (),
    ) -> None:
        """Add the scores of some pairs, [b] each.

        Args:
            chosen: scores of the preferred completions.
            rejected: scores of the others.
            lengths: tokens of the completions of both, where they are looked at.
            subsets: the name of each pair's subset, where the pairs have some.
        """
        right = pair_accuracy(chosen, rejected)
        self.loss.update(-logsigmoid(chosen - rejected))
        self.accuracy.update(right)
        self.margin.update(chosen - rejected)
        self.scores.update(torch.cat([chosen, rejected]))
        if lengths:
            for metric, values in zip(self.pairs, (chosen, rejected, *lengths), strict=True):
                metric.update(values.float())  # type: ignore[operator]
        for name, value in zip(subsets, right.tolist(), strict=bool(subsets)):
            self._subsets[name].append(value)

    def compute(self) -> dict[str, float]:
        """Return the means since the last reset, over all ranks; those of subsets behind those of all pairs."""
        named = {keys.LOSS: self.loss, keys.PAIR_ACCURACY: self.accuracy, keys.REWARD_MARGIN: self.margin}
        means = {name: float(metric.compute()) for name, metric in named.items()}
        found: dict[str, list[float]] = defaultdict(list)
        for of_rank in gather_objects(dict(self._subsets)):
            for name, values in of_rank.items():
                found[name] += values
        return means | {keys.pair_accuracy_of(name): sum(found[name]) / len(found[name]) for name in sorted(found)}

    def pair_scores(self) -> PairScores:
        """Return the pairs whose lengths were given, of all ranks."""
        rows = [torch.as_tensor(metric.compute()).cpu() for metric in self.pairs]  # type: ignore[operator]
        return PairScores(*(row.flatten() for row in rows))  # torchmetrics gives one value without an axis

    def moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of the scores; the latter is 0 where all are equal."""
        scores = torch.as_tensor(self.scores.compute()).double()
        return float(scores.mean()), float(scores.std())

    def reset(self) -> None:
        for metric in (self.loss, self.accuracy, self.margin, self.scores, *self.pairs):
            metric.reset()  # type: ignore[operator]
        self._subsets.clear()


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return [b]: 1 where the chosen one scores higher, 1/2 for a tie (every pair before training), else 0."""
    return torch.where(chosen == rejected, 0.5, (chosen > rejected).float())


@dataclass(frozen=True)
class Calibration:
    """What was predicted of pairs, and what was so, by bins of the prediction; [bins] each, without empty ones.

    Attributes:
        predicted: mean probability, under Bradley-Terry, of the completion that the model prefers.
        right: share of the pairs in which that is the chosen one; a tie counts half.
        counts: pairs.
    """

    predicted: Tensor
    right: Tensor
    counts: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over pairs of |right - predicted| of their bin (arXiv 1706.04599)."""
        return float(((self.right - self.predicted).abs() * self.counts).sum() / self.counts.sum())


def calibration(chosen: Tensor, rejected: Tensor) -> Calibration:
    """Compare the probabilities that scores [n] predict with what is so.

    >>> found = calibration(torch.tensor([0.0, 1.1, 1.1, 1.1, 1.1]), torch.tensor([0.0, 0.0, 0.0, 0.0, 2.2]))
    >>> [round(p, 3) for p in found.predicted.tolist()], found.right.tolist(), found.counts.tolist()
    ([0.5, 0.75], [0.5, 0.75], [1.0, 4.0])
    """
    difference = (chosen - rejected).double()
    probability = torch.sigmoid(difference.abs())
    right = pair_accuracy(chosen, rejected).double()
    bins = ((probability - 0.5) * 2 * N_BINS).long().clamp(max=N_BINS - 1)
    counts, predicted, shares = (
        torch.zeros(N_BINS, dtype=torch.float64).index_add_(0, bins, values)
        for values in (torch.ones_like(right), probability, right)
    )
    kept = counts > 0
    return Calibration(predicted[kept] / counts[kept], shares[kept] / counts[kept], counts[kept])
