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


def main(kind, policy, reward, folder, devices) -> None:
    folder = Path(folder)
    run = trainer(folder, 2, devices=int(devices), strategy="ddp" if devices == "2" else "auto")
    data = folder.parent / f"{folder.name}_{run.global_rank}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with quiet():
        run.fit(MODULES[kind](policy, reward), DATA[kind](str(data), batch_size=4, seed=1))


@pytest.mark.parametrize("kind", MODULES)
def test_logged_scalars_are_means_over_the_rows_of_both_processes(policy_folder, reward_folder, tmp_path, kind):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    for devices in ("1", "2"):
        command = [
            sys.executable,
            __file__,
            kind,
            str(policy_folder),
            str(reward_folder),
            str(tmp_path / devices),
            devices,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = scalars(tmp_path / "1"), scalars(tmp_path / "2")
    names = ["loss"] if kind == "sft" else ["loss", "pair_accuracy"]
    for name in names:
        assert sorted(one[name]) == [0, 1]
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


if __name__ == "__main__":
    main(*sys.argv[1:])
