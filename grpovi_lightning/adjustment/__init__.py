"""Rewards of a group -> adjusted rewards: identity is GRPO, variance increase is GRPOVI."""

from grpovi_lightning.adjustment.adjustments import Adjusted, Adjustment, IdentityAdjustment, VarianceIncrease
from grpovi_lightning.adjustment.ranges import FixedRange, GroupRange, RewardRange, RunningRange
from grpovi_lightning.adjustment.variance_increase import increase_variance
from grpovi_lightning.adjustment.weights import CompletionWeights, SequenceWeights, TokenMeanWeights, UniformWeights

__all__ = [
    "Adjusted",
    "Adjustment",
    "CompletionWeights",
    "FixedRange",
    "GroupRange",
    "IdentityAdjustment",
    "RewardRange",
    "RunningRange",
    "SequenceWeights",
    "TokenMeanWeights",
    "UniformWeights",
    "VarianceIncrease",
    "increase_variance",
]
