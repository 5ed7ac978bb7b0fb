"""Held-out statistics over batches and ranks."""

from collections.abc import Mapping, Sequence
from math import nan

import torch
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.losses.base import k3_divergence
from grpovi_lightning.ops import TokenStatistics, pass_at
from grpovi_lightning.selection import ScoredRollout


class HeldOutMetrics:
    """Means over held-out completions, and the standard deviation of each reward component over them.

    Rewards, components and metrics are averaged over the completions that have one; NaN where none has.
    """

    def __init__(self) -> None:
        self.means: dict[str, MeanMetric] = {}
        self.values: dict[str, CatMetric] = {}

    def update(self, scored: ScoredRollout, metrics: Mapping[str, Tensor]) -> None:
        """Add a batch of completions, with what the user's metrics found of them: name -> [B]."""
        rollout, rewards = scored.rollout, scored.rewards.flatten()
        self._mean(keys.REWARD, rewards)
        self._mean(keys.FRAC_UNSCORABLE, rewards.isnan().float())
        self._mean(keys.COMPLETIONS_MEAN_LENGTH, rollout.lengths.float())
        self._mean(keys.COMPLETIONS_CLIPPED_RATIO, rollout.truncated.float())
        for name, values in metrics.items():
            self._mean(name, values)
        for name, values in scored.components.items():
            metric = self.values.setdefault(name, CatMetric(nan_strategy="ignore").to(values.device))
            metric.update(values)

    def update_policy(self, scored: ScoredRollout, statistics: TokenStatistics) -> None:
        """Add the current policy's statistics [B, T] of a batch of its completions."""
        rollout, mask = scored.rollout, scored.rollout.completion_mask
        self._mean(keys.ENTROPY, statistics.entropies[mask])
        if rollout.ref_logprobs is not None:
            self._mean(keys.KL, k3_divergence(statistics.logprobs[mask], rollout.ref_logprobs[mask]))

    def update_passes(
        self, scored: ScoredRollout, metrics: Mapping[str, Tensor], at: Sequence[int], threshold: float
    ) -> None:
        """Add the pass@k of a batch's prompts, for each k and by each component and metric: `threshold` passes."""
        judged = {keys.rewards(name): values for name, values in scored.components.items()} | dict(metrics)
        for name, values in judged.items():
            grouped = scored.rollout.grouped(values)
            for k in at:
                self._mean(keys.pass_at(name, k), pass_at(grouped >= threshold, ~grouped.isnan(), k))

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
