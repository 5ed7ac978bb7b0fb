"""Completions -> rewards: functions, reward models, composites."""

from grpovi_lightning.rewards.base import Lesson, Reward
from grpovi_lightning.rewards.composite import CompositeReward
from grpovi_lightning.rewards.functions import RewardFunction
from grpovi_lightning.rewards.models import RewardModel

__all__ = ["CompositeReward", "Lesson", "Reward", "RewardFunction", "RewardModel"]
