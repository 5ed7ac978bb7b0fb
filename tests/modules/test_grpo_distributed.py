"""Two processes that share a batch do what one process does with the whole of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modules.ddp_driver import VARIANTS
from modules.grpo_runs import identical, relative_difference, scalars
from transformers import AutoModelForCausalLM

DRIVER = Path(__file__).parent / "ddp_driver.py"


def run(policy_folder, folder, devices, variant):
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(policy_folder), str(folder), str(devices), variant],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"weights_{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "resampling"])
def test_two_processes_end_with_the_parameters_and_metrics_of_one(policy_folder, tmp_path, variant):
    (alone,) = run(policy_folder, tmp_path / "one", 1, variant)
    first, second = run(policy_folder, tmp_path / "two", 2, variant)

    assert identical(first["weights"], second["weights"])
    assert relative_difference(first["weights"], alone["weights"]) < 1e-5
    initial = dict(AutoModelForCausalLM.from_pretrained(policy_folder).named_parameters())
    moved = [{name: state["weights"][name] - initial[name].detach() for name in initial} for state in (first, alone)]
    assert relative_difference(*moved) < 1e-3
    assert relative_difference(alone["weights"], initial) > 1e-3
    assert first["range"] == second["range"] == alone["range"]
    one, two = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    assert one.keys() == two.keys()
    for tag in one:
        if variant == "zero-advantage groups" and tag == "entropy":  # over the groups that go through a rank's model
            continue
        if tag.startswith("sampling/"):  # rounding, and nothing else
            assert max(two[tag].values()) < 1.001
            continue
        assert two[tag] == pytest.approx(one[tag], rel=1e-4, abs=1e-6), tag


@pytest.mark.slow
def test_two_processes_resample_together_and_stay_together(policy_folder, tmp_path):
    # Which spare prompts a rank gets differs with the number of ranks, so the result may; the ranks must agree.
    first, second = run(policy_folder, tmp_path / "two", 2, "resampling")
    assert identical(first["weights"], second["weights"])
    logged = scalars(tmp_path / "two")
    assert max(logged["frac_groups_resampled"].values()) > 0
    assert min(logged["frac_reward_zero_std"].values()) < 0.5
