"""Rewards of completions: functions, reward models, ensembles of them, weighted sums, normalisation."""

from grpovi_lightning.rewards.base import Reward, RewardUpdate
from grpovi_lightning.rewards.composite import CompositeReward
from grpovi_lightning.rewards.ensembles import MemberLowerBound, MemberMean, MemberMinimum, RewardModelEnsemble
from grpovi_lightning.rewards.functions import RewardFunction
from grpovi_lightning.rewards.models import RewardModel
from grpovi_lightning.rewards.normalised import NormalisedReward
from grpovi_lightning.rewards.retrying import Retry

__all__ = [
    "CompositeReward",
    "MemberLowerBound",
    "MemberMean",
    "MemberMinimum",
    "NormalisedReward",
    "Retry",
    "Reward",
    "RewardFunction",
    "RewardModel",
    "RewardModelEnsemble",
    "RewardUpdate",
]
