"""Where the runs of a study are started: on this machine, on a Ray cluster, or by SLURM."""

from grpovi_lightning.study.launchers.interface import Launcher, Process, Site
from grpovi_lightning.study.launchers.local import LocalLauncher
from grpovi_lightning.study.launchers.settings import LAUNCHERS, make_launcher

__all__ = ["LAUNCHERS", "Launcher", "LocalLauncher", "Process", "Site", "make_launcher"]
