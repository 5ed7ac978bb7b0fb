"""Prompts, demonstrations and preferences; the embedded task."""

from grpovi_lightning.data.modules import DemonstrationDataModule, PromptDataModule
from grpovi_lightning.data.preferences import PreferenceDataModule

__all__ = ["DemonstrationDataModule", "PreferenceDataModule", "PromptDataModule"]
