"""Advantages and log-probabilities -> loss."""

from grpovi_lightning.losses.base import LossOutput, PolicyLoss
from grpovi_lightning.losses.bnpo import BNPOLoss
from grpovi_lightning.losses.cispo import CISPOLoss
from grpovi_lightning.losses.dapo import DAPOLoss
from grpovi_lightning.losses.dr_grpo import DrGRPOLoss
from grpovi_lightning.losses.grpo import GRPOLoss
from grpovi_lightning.losses.gspo import GSPOLoss
from grpovi_lightning.losses.importance import ImportanceSampling, TruncatedImportanceSampling
from grpovi_lightning.losses.kl import K1, K2, K3, KLEstimator

__all__ = [
    "K1",
    "K2",
    "K3",
    "BNPOLoss",
    "CISPOLoss",
    "DAPOLoss",
    "DrGRPOLoss",
    "GRPOLoss",
    "GSPOLoss",
    "ImportanceSampling",
    "KLEstimator",
    "LossOutput",
    "PolicyLoss",
    "TruncatedImportanceSampling",
]
