"""Scalars of one update, gathered over its micro-batches."""

from typing import NamedTuple

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.losses import LossOutput
from grpovi_lightning.modules.rollout_metrics import as_floats
from grpovi_lightning.ops import TokenStatistics, masked_mean
from grpovi_lightning.structures import Experience


class UpdateResult(NamedTuple):
    """What one optimiser step reports.

    Attributes:
        metrics: its scalars, over all ranks.
        n_tokens: tokens that it was trained on, over all ranks, divided by the number of ranks.
    """

    metrics: dict[str, float]
    n_tokens: float


class UpdateMetrics:
    """Means over the tokens that are trained on, the loss, and how far sampler and trainer disagree."""

    def __init__(self) -> None:
        self.n_tokens = torch.zeros(())
        self._sums: dict[str, Tensor] = {}
        self._loss = torch.zeros(())
        self._log_ratios: list[Tensor] = []

    def add(self, batch: Experience, output: LossOutput, statistics: TokenStatistics) -> None:
        """Add a micro-batch after its backward pass."""
        n_tokens = batch.loss_mask.sum()
        token_means = output.metrics | {keys.ENTROPY: masked_mean(statistics.entropies.detach(), batch.loss_mask)}
        for name, value in token_means.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value * n_tokens
        self.n_tokens = self.n_tokens.to(n_tokens.device) + n_tokens
        self._loss = self._loss.to(output.loss.device) + output.loss.detach()
        sampled = statistics.logprobs.detach() - batch.rollout.old_logprobs
        self._log_ratios.append(sampled[batch.rollout.completion_mask])

    def compute(self, n_tokens: Tensor) -> dict[str, float]:
        """Return the numbers of this rank, which over all ranks give those of the whole update.

        `n_tokens` are the tokens trained on over all ranks, divided by the number of ranks.
        """
        tensors = {name: total / n_tokens.clamp(min=1) for name, total in self._sums.items()} | {keys.LOSS: self._loss}
        log_ratios = torch.cat(self._log_ratios).double()
        ratios = log_ratios.exp()
        tensors |= {
            keys.SAMPLING_LOGP_DIFFERENCE_MEAN: log_ratios.abs().mean(),
            keys.SAMPLING_LOGP_DIFFERENCE_MAX: log_ratios.abs().max(),
            keys.SAMPLING_RATIO_MIN: ratios.min(),
            keys.SAMPLING_RATIO_MEAN: ratios.mean(),
            keys.SAMPLING_RATIO_MAX: ratios.max(),
        }
        return as_floats(tensors)


_PER_UPDATE = (keys.LOSS, keys.GRAD_NORM, keys.LEARNING_RATE)


def combined_metrics(updates: list[UpdateResult]) -> dict[str, float]:
    """Return the scalars of all updates on one rollout: means, and the extremes of the clip ratios, as in TRL.

    Means over tokens are over the tokens of all updates. How far the sampler is from the trainer is taken from the
    first update alone: in later ones the policy has moved.
    """
    n_tokens = sum(update.n_tokens for update in updates)
    metrics = {}
    for name in updates[0].metrics:
        values = [update.metrics[name] for update in updates]
        if name.startswith(keys.SAMPLING_PREFIX):
            metrics[name] = values[0]
        elif name in _PER_UPDATE or len(updates) == 1:
            metrics[name] = sum(values) / len(values)
        else:
            weights = [update.n_tokens / n_tokens for update in updates]
            metrics[name] = sum(weight * value for weight, value in zip(weights, values, strict=True))
    if keys.CLIP_RATIO_LOW_MEAN in metrics:
        metrics[keys.CLIP_RATIO_LOW_MIN] = min(update.metrics[keys.CLIP_RATIO_LOW_MEAN] for update in updates)
        metrics[keys.CLIP_RATIO_HIGH_MAX] = max(update.metrics[keys.CLIP_RATIO_HIGH_MEAN] for update in updates)
    return metrics
