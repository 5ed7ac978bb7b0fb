"""Two processes that share a batch do what one process does with the whole of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modules.grpo_runs import identical, relative_difference, scalars
from transformers import AutoModelForCausalLM

DRIVER = Path(__file__).parent / "ddp_driver.py"


def run(policy_folder, folder, devices):
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(policy_folder), str(folder), str(devices)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"weights_{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.mark.slow
def test_two_processes_end_with_the_parameters_and_metrics_of_one(policy_folder, tmp_path):
    (alone,) = run(policy_folder, tmp_path / "one", 1)
    first, second = run(policy_folder, tmp_path / "two", 2)

    assert identical(first["weights"], second["weights"])
    assert relative_difference(first["weights"], alone["weights"]) < 1e-5
    initial = dict(AutoModelForCausalLM.from_pretrained(policy_folder).named_parameters())
    moved = [{name: state["weights"][name] - initial[name] for name in initial} for state in (first, alone)]
    assert relative_difference(*moved) < 1e-3
    assert relative_difference(alone["weights"], initial) > 1e-3
    assert first["range"] == second["range"] == alone["range"]
    one, two = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    assert one.keys() == two.keys()
    for tag in ("reward", "reward_std", "loss", "grad_norm", "num_tokens", "eval/reward", "eval/rewards/graded/std"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-4, abs=1e-6), tag
