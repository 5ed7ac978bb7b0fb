"""Statistics of held-out preference pairs, over batches and ranks."""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torchmetrics import CatMetric, MeanMetric

from grpovi_lightning import metric_keys as keys


class HeldOutPairs(nn.Module):
    """Bradley-Terry loss, accuracy and margin of pairs, and the moments of all their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.loss, self.accuracy, self.margin = MeanMetric(), MeanMetric(), MeanMetric()
        self.scores = CatMetric()

    def update(self, chosen: Tensor, rejected: Tensor) -> None:
        """Add the scores of some pairs, [b] each."""
        self.loss.update(-logsigmoid(chosen - rejected))
        self.accuracy.update(pair_accuracy(chosen, rejected))
        self.margin.update(chosen - rejected)
        self.scores.update(torch.cat([chosen, rejected]))

    def compute(self) -> dict[str, float]:
        """Return the means since the last reset, over all ranks."""
        named = {keys.LOSS: self.loss, keys.PAIR_ACCURACY: self.accuracy, keys.REWARD_MARGIN: self.margin}
        return {name: float(metric.compute()) for name, metric in named.items()}

    def moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of the scores; the latter is 0 where all are equal."""
        scores = torch.as_tensor(self.scores.compute()).double()
        return float(scores.mean()), float(scores.std())

    def reset(self) -> None:
        for metric in (self.loss, self.accuracy, self.margin, self.scores):
            metric.reset()


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return [b]: 1 where the chosen one scores higher, 1/2 for a tie (every pair before training), else 0."""
    return torch.where(chosen == rejected, 0.5, (chosen > rejected).float())
