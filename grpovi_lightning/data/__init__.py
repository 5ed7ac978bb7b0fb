"""Prompts, demonstrations and preferences; where they come from; the embedded task."""

from grpovi_lightning.data.modules import DemonstrationDataModule, PromptDataModule
from grpovi_lightning.data.preferences import PreferenceDataModule
from grpovi_lightning.data.preparation import Preparation
from grpovi_lightning.data.sources import DataSource

__all__ = ["DataSource", "DemonstrationDataModule", "PreferenceDataModule", "Preparation", "PromptDataModule"]
