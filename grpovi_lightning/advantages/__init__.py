"""Adjusted rewards -> advantages."""

from grpovi_lightning.advantages.base import Advantage, shown_range
from grpovi_lightning.advantages.focal import FocalAdvantage
from grpovi_lightning.advantages.group import GroupAdvantage, ScaleRewards
from grpovi_lightning.advantages.leave_one_out import LeaveOneOutAdvantage
from grpovi_lightning.advantages.maxrl import MaxRLAdvantage
from grpovi_lightning.advantages.opo import OPOAdvantage
from grpovi_lightning.advantages.reinforce_plus_plus import ReinforcePlusPlusAdvantage

__all__ = [
    "Advantage",
    "FocalAdvantage",
    "GroupAdvantage",
    "LeaveOneOutAdvantage",
    "MaxRLAdvantage",
    "OPOAdvantage",
    "ReinforcePlusPlusAdvantage",
    "ScaleRewards",
    "shown_range",
]
