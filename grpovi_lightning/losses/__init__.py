"""Advantages and log-probabilities -> loss."""

from grpovi_lightning.losses.base import LossInputs, LossOutput, PolicyLoss, Surrogate
from grpovi_lightning.losses.bnpo import BNPOLoss
from grpovi_lightning.losses.cispo import CISPOLoss
from grpovi_lightning.losses.dapo import DAPOLoss
from grpovi_lightning.losses.dppo import DPPOTVLoss
from grpovi_lightning.losses.dr_grpo import DrGRPOLoss
from grpovi_lightning.losses.entropy_bonus import EntropyBonus
from grpovi_lightning.losses.gmpo import GMPOLoss
from grpovi_lightning.losses.grpo import GRPOLoss
from grpovi_lightning.losses.gspo import GSPOLoss
from grpovi_lightning.losses.importance import ImportanceSampling, TruncatedImportanceSampling
from grpovi_lightning.losses.kl import K1, K2, K3, K3Plus, KLEstimator
from grpovi_lightning.losses.sapo import SAPOLoss
from grpovi_lightning.losses.token_selection import HighEntropyTokens, TokenSelection

__all__ = [
    "K1",
    "K2",
    "K3",
    "BNPOLoss",
    "CISPOLoss",
    "DAPOLoss",
    "DPPOTVLoss",
    "DrGRPOLoss",
    "EntropyBonus",
    "GMPOLoss",
    "GRPOLoss",
    "GSPOLoss",
    "HighEntropyTokens",
    "ImportanceSampling",
    "K3Plus",
    "KLEstimator",
    "LossInputs",
    "LossOutput",
    "PolicyLoss",
    "SAPOLoss",
    "Surrogate",
    "TokenSelection",
    "TruncatedImportanceSampling",
]
