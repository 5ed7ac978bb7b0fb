"""Adjusted rewards -> advantages."""

from grpovi_lightning.advantages.base import Advantage, centred
from grpovi_lightning.advantages.group import GroupAdvantage, ScaleRewards
from grpovi_lightning.advantages.leave_one_out import LeaveOneOutAdvantage

__all__ = ["Advantage", "GroupAdvantage", "LeaveOneOutAdvantage", "ScaleRewards", "centred"]
