"""Advantages and log-probabilities -> loss."""

from grpovi_lightning.losses.base import LossOutput, PolicyLoss
from grpovi_lightning.losses.grpo import GRPOLoss

__all__ = ["GRPOLoss", "LossOutput", "PolicyLoss"]
