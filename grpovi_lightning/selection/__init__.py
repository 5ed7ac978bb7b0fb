"""Which prompts and completions the policy learns from."""

from grpovi_lightning.selection.at_random import RandomSelection
from grpovi_lightning.selection.completions import CompletionSelection, EveryCompletion
from grpovi_lightning.selection.dynamic import DynamicResampling
from grpovi_lightning.selection.history_skipping import HistorySkipping
from grpovi_lightning.selection.max_variance import MaxVarianceSelection
from grpovi_lightning.selection.prompts import EveryPrompt, PromptSelection, StepSampling
from grpovi_lightning.selection.scored import ScoredRollout
from grpovi_lightning.selection.top_rewards import TopSelection
from grpovi_lightning.selection.variance_curriculum import VarianceCurriculum

__all__ = [
    "CompletionSelection",
    "DynamicResampling",
    "EveryCompletion",
    "EveryPrompt",
    "HistorySkipping",
    "MaxVarianceSelection",
    "PromptSelection",
    "RandomSelection",
    "ScoredRollout",
    "StepSampling",
    "TopSelection",
    "VarianceCurriculum",
]
