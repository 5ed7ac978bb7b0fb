"""Rewards of completions: functions, reward models, weighted sums of them."""

from grpovi_lightning.rewards.base import Reward, RewardUpdate
from grpovi_lightning.rewards.composite import CompositeReward
from grpovi_lightning.rewards.functions import RewardFunction
from grpovi_lightning.rewards.models import RewardModel

__all__ = ["CompositeReward", "Reward", "RewardFunction", "RewardModel", "RewardUpdate"]
