"""Callbacks: status, checkpoints, completions, samples, tabs, throughput, warnings, evaluation, ends, export."""

from grpovi_lightning.callbacks.checkpoint import RunCheckpoint
from grpovi_lightning.callbacks.completions import CompletionFiles
from grpovi_lightning.callbacks.diagnoses import Diagnoses
from grpovi_lightning.callbacks.lifecycle import EvaluateAtStart, ExportModel, TimeLimit
from grpovi_lightning.callbacks.ranks import RankWatch
from grpovi_lightning.callbacks.rounding import RoundingWatch
from grpovi_lightning.callbacks.samples import CompletionSamples
from grpovi_lightning.callbacks.status import RunStatus
from grpovi_lightning.callbacks.stopping import StopOnSigterm
from grpovi_lightning.callbacks.tabs import TensorBoardTabs
from grpovi_lightning.callbacks.throughput import Throughput
from grpovi_lightning.callbacks.watch import RewardWatch

__all__ = [
    "CompletionFiles",
    "CompletionSamples",
    "Diagnoses",
    "EvaluateAtStart",
    "ExportModel",
    "RankWatch",
    "RewardWatch",
    "RoundingWatch",
    "RunCheckpoint",
    "RunStatus",
    "StopOnSigterm",
    "TensorBoardTabs",
    "Throughput",
    "TimeLimit",
]
