"""Under two processes supervised modules train, and log, as one process does: by means over all rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from modules.grpo_runs import identical, quiet, relative_difference, scalars, trainer

from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.models.sharding import whole
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
    "sft": lambda policy, reward: SFTModule(PretrainedCausalLM(policy), optimizer=sgd),
    "reward_model": lambda policy, reward: RewardModelModule(reward, optimizer=sgd),
}
DATA = {"sft": DemonstrationDataModule, "reward_model": PreferenceDataModule}


STRATEGIES = {"2": "ddp", "sharded": "fsdp2"}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def run_both(policy, reward, folder, devices) -> None:
    """Trains each module; two processes accumulate two batches of one row each, besides."""
    for kind, make in MODULES.items():
        two = devices in STRATEGIES
        if devices == "sharded" and kind != "sft":
            continue
        settings = {"devices": 2, "strategy": STRATEGIES[devices], "accumulate_grad_batches": 2} if two else {}
        run = trainer(Path(folder) / kind, 2, **settings)
        data = Path(folder) / f"{kind}_{run.global_rank}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        module = make(policy, reward)
        with quiet():
            run.fit(module, DATA[kind](str(data), batch_size=2 if two else 4, seed=1))
        parameters = {name: whole(p.detach()) for name, p in module.named_parameters()}
        torch.save(parameters, Path(folder) / f"{kind}_{run.global_rank}.pt")


@pytest.fixture(scope="module")
def logged(policy_folder, reward_folder, tmp_path_factory):
    """What one process and two have logged, and their folder, by the number of processes."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    folders = {devices: tmp_path_factory.mktemp(f"processes_{devices}") for devices in ("1", *STRATEGIES)}
    for devices, folder in folders.items():
        command = [sys.executable, __file__, str(policy_folder), str(reward_folder), str(folder), devices]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    return {
        devices: {kind: scalars(folder / kind) for kind in MODULES if (folder / kind).exists()} | {"folder": folder}
        for devices, folder in folders.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "processes"),
    [
        ("sft", "loss", "2"),
        ("sft", "loss", "sharded"),
        ("reward_model", "loss", "2"),
        ("reward_model", "pair_accuracy", "2"),
    ],
)
def test_logged_scalars_are_means_over_the_rows_of_both_processes(logged, kind, name, processes):
    one, two = (logged[devices][kind][name] for devices in ("1", processes))
    assert sorted(one) == [0, 1]
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "processes"), [("sft", "2"), ("sft", "sharded"), ("reward_model", "2")])
def test_two_processes_end_with_the_weights_of_one(logged, policy_folder, reward_folder, kind, processes):
    one, first, second = (
        torch.load(logged[devices]["folder"] / f"{kind}_{rank}.pt", weights_only=True)
        for devices, rank in (("1", 0), (processes, 0), (processes, 1))
    )
    untrained = MODULES[kind](str(policy_folder), str(reward_folder))
    untrained.configure_model()
    steps = [{name: after[name] - p for name, p in untrained.named_parameters()} for after in (one, first)]
    assert identical(first, second) and relative_difference(*steps) < 1e-4


if __name__ == "__main__":
    run_both(*sys.argv[1:])
