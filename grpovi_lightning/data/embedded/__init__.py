"""The embedded task: a small language with instructions, a gold reward, demonstrations and preference pairs."""

from grpovi_lightning.data.embedded.gold import GOLD_RANGE, GoldScore, gold_reward, score
from grpovi_lightning.data.embedded.prompts import Instruction, Topic, count_prompts, parse, render, sample_instruction
from grpovi_lightning.data.embedded.size import TaskSize
from grpovi_lightning.data.embedded.task import write_task
from grpovi_lightning.data.embedded.tokenizer import build_tokenizer
from grpovi_lightning.data.embedded.writer import write

__all__ = [
    "GOLD_RANGE",
    "GoldScore",
    "Instruction",
    "TaskSize",
    "Topic",
    "build_tokenizer",
    "count_prompts",
    "gold_reward",
    "parse",
    "render",
    "sample_instruction",
    "score",
    "write",
    "write_task",
]
