"""Prompts -> completions."""

from grpovi_lightning.rollout.engine import RolloutEngine
from grpovi_lightning.rollout.sampling import SamplingConfig

__all__ = ["RolloutEngine", "SamplingConfig"]
