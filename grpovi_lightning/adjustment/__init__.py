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
from grpovi_lightning.adjustment.gaussian_dithering import GaussianDithering
from grpovi_lightning.adjustment.kl_in_reward import KLInReward
from grpovi_lightning.adjustment.ranges import FixedRange, GroupRange, RewardRange, RunningRange, SigmoidRange
from grpovi_lightning.adjustment.stretch import Stretch
from grpovi_lightning.adjustment.threshold import Threshold
from grpovi_lightning.adjustment.ties import MergeTies, SplitTies, Ties
from grpovi_lightning.adjustment.uniform_dithering import UniformDithering
from grpovi_lightning.adjustment.variance_increase import increase_variance
from grpovi_lightning.adjustment.weights import CompletionWeights, SequenceWeights, TokenMeanWeights, UniformWeights

__all__ = [
    "Adjusted",
    "Adjustment",
    "CompletionWeights",
    "FixedRange",
    "GaussianDithering",
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
    "Stretch",
    "Threshold",
    "Ties",
    "TokenMeanWeights",
    "UniformDithering",
    "UniformWeights",
    "VarianceIncrease",
    "increase_metrics",
    "increase_variance",
]
