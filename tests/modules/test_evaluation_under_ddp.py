"""Two processes train and evaluate without advice from Lightning, and log the same numbers."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from helpers.two_processes import run_in_two_processes
from modules.grpo_runs import trainer
from modules.module_kinds import KINDS, rows

from grpovi_lightning.callbacks import Throughput

ENVIRONMENT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")


def train_and_evaluate(rank, folder, kind, policy, reward):
    os.environ |= dict(zip(ENVIRONMENT, (str(rank), "0", "2"), strict=True))
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run = trainer(Path(folder) / "run", 2, Throughput(), validate_every=1, devices=2, strategy="ddp")
            module, data = KINDS[kind](policy, reward), rows(kind, Path(folder) / f"data_{rank}")
            run.fit(module, data)
            after_training = dict(run.callback_metrics)
            run.validate(module, data)
    finally:
        for name in ENVIRONMENT:
            os.environ.pop(name, None)
    assert not [str(each.message) for each in seen if "sync_dist" in str(each.message)]
    assert any(name.startswith("eval/") for name in after_training)
    numbers = {name: value for name, value in run.callback_metrics.items() if name.startswith("eval/")}
    assert numbers
    torch.save(numbers, Path(folder) / f"numbers_{rank}.pt")


@pytest.mark.parametrize("kind", ["sft", "reward model", "grpo"])
def test_evaluations_in_two_processes_need_no_advice(policy_folder, reward_folder, tmp_path, kind):
    run_in_two_processes(train_and_evaluate, tmp_path, kind, str(policy_folder), str(reward_folder))
    first, second = (torch.load(tmp_path / f"numbers_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    shared = [name for name in first if "seconds" not in name]
    assert {name: float(first[name]) for name in shared} == {name: float(second[name]) for name in shared}
