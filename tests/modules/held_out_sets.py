"""Prompts of which several held-out sets have names."""

import json
from pathlib import Path

from modules.grpo_runs import PROMPTS

from grpovi_lightning.data import PromptDataModule

SETS = {
    "near": ["the fox", "write a happy cat", "ten dog", "the old boat"],
    "far": ["a sad cat", "the river", "a boat", "red red house", "dog"],
}


def write_rows(folder, name, prompts):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "answer": p.split()[-1]}) + "\n" for p in prompts))
    return str(file)


def named_sets(folder, names=tuple(SETS), **settings):
    files = {name: write_rows(folder, name, SETS[name]) for name in names}
    settings = {"prompts_per_step": 4, "validation_batch_size": 2, "seed": 1} | settings
    return PromptDataModule(write_rows(folder, "train", PROMPTS), files, **settings)


def one_set(folder, name, **settings):
    """The same rows as the only held-out set, which needs no name."""
    settings = {"prompts_per_step": 4, "validation_batch_size": 2, "seed": 1} | settings
    return PromptDataModule(write_rows(folder, "train", PROMPTS), write_rows(folder, name, SETS[name]), **settings)
