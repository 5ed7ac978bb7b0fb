"""A study: prepared artefacts, then arms x seeds, each a process of its own; run, continued and checked."""

from grpovi_lightning.study.checking import Services
from grpovi_lightning.study.comparison import compare, dry_run
from grpovi_lightning.study.specification import Arm, ConfigFile, Stage, Study, load_study

__all__ = ["Arm", "ConfigFile", "Services", "Stage", "Study", "compare", "dry_run", "load_study"]
