"""What the training loop calls between the rewards and the advantages."""

from abc import abstractmethod
from typing import Literal, NamedTuple

from torch import Tensor, nn

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment.ranges import RewardRange, RunningRange
from grpovi_lightning.adjustment.variance_increase import increase_variance
from grpovi_lightning.adjustment.weights import CompletionWeights, SequenceWeights
from grpovi_lightning.structures import Rollout


class Adjusted(NamedTuple):
    """Adjusted rewards [P, G] and scalars to log."""

    rewards: Tensor
    metrics: dict[str, float]


class Adjustment(nn.Module):
    """Rewards of each group -> adjusted rewards. An `nn.Module`, so that its state is checkpointed."""

    needs_reference: bool = False
    """Whether the rollout must carry the reference policy's log-probabilities."""
    changes_pairs: bool = True
    """Whether the standardised advantages of a group of two can differ from those of the raw rewards."""

    @abstractmethod
    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Adjusts raw rewards [P, G]; the argument is never written to."""


class IdentityAdjustment(Adjustment):
    """GRPO: the rewards as they are."""

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Returns the rewards unchanged."""
        return Adjusted(rewards, {})


class VarianceIncrease(Adjustment):
    """GRPOVI: the largest weighted variance within order, mean and range (arXiv 2505.23247, Algorithm 3).

    Degenerate cases: rewards that already sit at the two ends of the range (0/1 rewards with range
    [0, 1]) are a fixed point; with two completions and standardised advantages nothing changes.

    Choices that the paper leaves open or that depart from it: see `weights`, `range` and `ties`.
    """

    changes_pairs = False

    def __init__(
        self,
        weights: CompletionWeights | None = None,
        range: RewardRange | None = None,
        ties: Literal["merge", "split"] = "merge",
    ) -> None:
        """Composes the adjustment.

        Args:
            weights: the weights p_i; default `SequenceWeights`, the paper's.
            range: the range [m, M]; default `RunningRange`, because a learned reward has no known bounds.
            ties: "merge" keeps equal rewards equal; "split" is the paper's model.
        """
        super().__init__()
        self.weights = weights or SequenceWeights()
        self.range = range or RunningRange()
        self.ties = ties
        self.needs_reference = self.weights.needs_reference

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Adjusts [P, G] rewards and reports variance, range and weights."""
        log_weights = self.weights(rollout)
        bounded, lower, upper = self.range(rewards)
        adjusted = increase_variance(bounded, log_weights, lower=lower, upper=upper, ties=self.ties)
        weights = log_weights.softmax(dim=1)
        metrics = {
            keys.ADJUSTMENT_VARIANCE_BEFORE: _weighted_variance(bounded, weights),
            keys.ADJUSTMENT_VARIANCE_AFTER: _weighted_variance(adjusted, weights),
            keys.ADJUSTMENT_UNIFORM_VARIANCE_BEFORE: bounded.double().var(dim=1, correction=0).mean(),
            keys.ADJUSTMENT_UNIFORM_VARIANCE_AFTER: adjusted.double().var(dim=1, correction=0).mean(),
            keys.ADJUSTMENT_FRAC_CHANGED: ((adjusted - bounded).abs() > 1e-6 * (upper - lower))
            .any(dim=1)
            .double()
            .mean(),
            keys.ADJUSTMENT_EFFECTIVE_WEIGHTS: _entropy(weights).exp().mean(),
            keys.ADJUSTMENT_RANGE_LOWER: lower.double().mean(),
            keys.ADJUSTMENT_RANGE_UPPER: upper.double().mean(),
        }
        return Adjusted(adjusted, {name: value.item() for name, value in metrics.items()})


def _weighted_variance(values: Tensor, weights: Tensor) -> Tensor:
    values = values.double()
    mean = (weights * values).sum(dim=1, keepdim=True)
    return (weights * (values - mean).square()).sum(dim=1).mean()


def _entropy(weights: Tensor) -> Tensor:
    return -weights.xlogy(weights).sum(dim=1)
