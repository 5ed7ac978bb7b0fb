"""Held-out statistics over batches and ranks."""

from math import nan

import torch
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.losses.base import k3_divergence
from grpovi_lightning.modules.resampling import ScoredRollout
from grpovi_lightning.ops import TokenStatistics


class HeldOutMetrics:
    """Means over held-out completions, and the standard deviation of each reward component over them.

    Rewards and components are averaged over the completions that have one; NaN where none has.
    """

    def __init__(self) -> None:
        self.means: dict[str, MeanMetric] = {}
        self.values: dict[str, CatMetric] = {}

    def update(self, scored: ScoredRollout, statistics: TokenStatistics) -> None:
        """Add a batch of completions, with the current policy's statistics [B, T] of them."""
        rollout, rewards = scored.rollout, scored.rewards.flatten()
        mask = rollout.completion_mask
        self._mean(keys.REWARD, rewards)
        self._mean(keys.FRAC_UNSCORABLE, rewards.isnan().float())
        self._mean(keys.COMPLETIONS_MEAN_LENGTH, rollout.lengths.float())
        self._mean(keys.COMPLETIONS_CLIPPED_RATIO, rollout.truncated.float())
        self._mean(keys.ENTROPY, statistics.entropies[mask])
        if rollout.ref_logprobs is not None:
            self._mean(keys.KL, k3_divergence(statistics.logprobs[mask], rollout.ref_logprobs[mask]))
        for name, values in scored.components.items():
            metric = self.values.setdefault(name, CatMetric(nan_strategy="ignore").to(values.device))
            metric.update(values)

    def compute(self) -> dict[str, float]:
        """Return the statistics since the last reset, over all ranks."""
        result = {name: float(metric.compute()) for name, metric in self.means.items()}
        for name, metric in self.values.items():
            values = torch.as_tensor(metric.compute())
            result[keys.rewards_mean(name)] = float(values.mean())
            result[keys.rewards_std(name)] = float(values.std()) if values.numel() > 1 else nan
        return result

    def reset(self) -> None:
        for metric in [*self.means.values(), *self.values.values()]:
            metric.reset()

    def _mean(self, name: str, values: Tensor) -> None:
        """Add to a sum and a count of what is not NaN: over batches and ranks they give one mean."""
        self.means.setdefault(name, MeanMetric(nan_strategy="ignore").to(values.device)).update(values)
