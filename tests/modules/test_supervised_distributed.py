"""Under two processes the logged training scalars of supervised modules are means over all rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from modules.grpo_runs import quiet, scalars, trainer

from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import RewardModelModule, SFTModule

# Lengths differ, so that a mean of the ranks' means would be another number.
ROWS = [
    {"prompt": "write", "completion": "fox", "chosen": "a fox", "rejected": "the"},
    {
        "prompt": "the old house",
        "completion": "the fox runs near the house",
        "chosen": "it",
        "rejected": "a",
    },
    {"prompt": "a sad cat", "completion": "it", "chosen": "the cat sleeps", "rejected": "ten words"},
    {"prompt": "ten", "completion": "a dog finds the river and sings", "chosen": "dog", "rejected": "boat boat boat"},
]
MODULES = {
    "sft": lambda policy, reward: SFTModule(PretrainedCausalLM(policy), optimizer=still),
    "reward_model": lambda policy, reward: RewardModelModule(reward, optimizer=still),
}
DATA = {"sft": DemonstrationDataModule, "reward_model": PreferenceDataModule}


def still(parameters):
    """An optimiser that moves nothing: every step is measured on the same weights."""
    return torch.optim.SGD(parameters, lr=0.0)


def run_both(policy, reward, folder, devices) -> None:
    for kind, make in MODULES.items():
        run = trainer(Path(folder) / kind, 2, devices=int(devices), strategy="ddp" if devices == "2" else "auto")
        data = Path(folder) / f"{kind}_{run.global_rank}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        with quiet():
            run.fit(make(policy, reward), DATA[kind](str(data), batch_size=4, seed=1))


@pytest.fixture(scope="module")
def logged(policy_folder, reward_folder, tmp_path_factory):
    """What one process and two have logged, by the number of processes."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    folders = {devices: tmp_path_factory.mktemp(f"processes_{devices}") for devices in ("1", "2")}
    for devices, folder in folders.items():
        command = [sys.executable, __file__, str(policy_folder), str(reward_folder), str(folder), devices]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    return {devices: {kind: scalars(folder / kind) for kind in MODULES} for devices, folder in folders.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("sft", "loss"), ("reward_model", "loss"), ("reward_model", "pair_accuracy")]
)
def test_logged_scalars_are_means_over_the_rows_of_both_processes(logged, kind, name):
    one, two = (logged[devices][kind][name] for devices in ("1", "2"))
    assert sorted(one) == [0, 1]
    assert two == pytest.approx(one, rel=1e-5)


if __name__ == "__main__":
    run_both(*sys.argv[1:])
