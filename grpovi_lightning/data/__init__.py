"""Prompts, demonstrations and preferences; the embedded task."""

from grpovi_lightning.data.modules import DemonstrationDataModule, PreferenceDataModule, PromptDataModule

__all__ = ["DemonstrationDataModule", "PreferenceDataModule", "PromptDataModule"]
