"""A study: prepared artefacts, then arms x seeds, each a process of its own; run, continued and checked."""

from grpovi_lightning.study.comparison import compare
from grpovi_lightning.study.specification import Arm, ConfigFile, Stage, Study, load_study

__all__ = ["Arm", "ConfigFile", "Stage", "Study", "compare", "load_study"]
