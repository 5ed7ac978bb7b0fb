"""LightningModules: GRPO and GRPOVI, supervised fine-tuning, reward modelling."""

from grpovi_lightning.modules.evaluation import HeldOutEvaluation
from grpovi_lightning.modules.grpo import GRPOModule
from grpovi_lightning.modules.one_pass import OnePassRewardModule
from grpovi_lightning.modules.reward_model import RewardModelModule
from grpovi_lightning.modules.sft import SFTModule
from grpovi_lightning.modules.update_settings import UpdateSettings
from grpovi_lightning.selection import DynamicResampling

__all__ = [
    "DynamicResampling",
    "GRPOModule",
    "HeldOutEvaluation",
    "OnePassRewardModule",
    "RewardModelModule",
    "SFTModule",
    "UpdateSettings",
]
