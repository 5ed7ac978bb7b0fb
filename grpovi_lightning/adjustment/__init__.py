"""Rewards of a group -> adjusted rewards: identity is GRPO, variance increase is GRPOVI."""

from grpovi_lightning.adjustment.adjustments import (
    Adjusted,
    Adjustment,
    IdentityAdjustment,
    Increase,
    RangeOnly,
    VarianceIncrease,
)
from grpovi_lightning.adjustment.diagnostics import increase_metrics
from grpovi_lightning.adjustment.kl_in_reward import KLInReward
from grpovi_lightning.adjustment.ranges import FixedRange, GroupRange, RewardRange, RunningRange, SigmoidRange
from grpovi_lightning.adjustment.ties import MergeTies, SplitTies, Ties
from grpovi_lightning.adjustment.variance_increase import increase_variance
from grpovi_lightning.adjustment.weights import CompletionWeights, SequenceWeights, TokenMeanWeights, UniformWeights

__all__ = [
    "Adjusted",
    "Adjustment",
    "CompletionWeights",
    "FixedRange",
    "GroupRange",
    "IdentityAdjustment",
    "Increase",
    "KLInReward",
    "MergeTies",
    "RangeOnly",
    "RewardRange",
    "RunningRange",
    "SequenceWeights",
    "SigmoidRange",
    "SplitTies",
    "Ties",
    "TokenMeanWeights",
    "UniformWeights",
    "VarianceIncrease",
    "increase_metrics",
    "increase_variance",
]
