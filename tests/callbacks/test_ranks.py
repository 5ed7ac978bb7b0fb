"""A process of a run that is killed, or gives no sign of life: the others end soon, and one says who it was."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.own_input import run_config, write_own_input, write_yaml

from grpovi_lightning.callbacks import RankWatch
from grpovi_lightning.errors import UserError

REWARDS = '''
import json, os, pathlib, signal

def lengths(completion_ids, trainer_state):
    """Sends the signal of plan.json to the rank of its own that it names, at step 2 of the training."""
    plan = pathlib.Path("plan.json")
    rank = int(os.environ.get("LOCAL_RANK", 0))
    pathlib.Path(f"pid_{rank}").write_text(str(os.getpid()))
    if plan.exists() and trainer_state.step == 2:
        told = json.loads(plan.read_text())
        if told["rank"] == rank:
            plan.unlink()
            os.kill(os.getpid(), told["signal"])
    return [-abs(len(ids) - 4) + 0.01 * (sum(ids) % 7) for ids in completion_ids]
'''
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    write_own_input(folder)
    (folder / "ending_rewards.py").write_text(REWARDS)
    return folder


def start(root, run, strategy, *arguments):
    reward = {
        "class_path": "grpovi_lightning.rewards.RewardFunction",
        "init_args": {"function": "ending_rewards.lengths"},
    }
    config = run_config(root, run, reward=reward)
    config["trainer"] |= {"devices": 2, "strategy": strategy, "max_steps": 4, "val_check_interval": 4}
    config["checkpoint"] = {"every_n_train_steps": 1}
    file = write_yaml(run.with_suffix(".yaml"), config)
    command = [sys.executable, "-m", "grpovi_lightning.cli", "fit", "--config", file, *arguments]
    return subprocess.Popen(
        command,
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize(
    ("rank", "sent", "limit", "why", "strategy", "goes_on"),
    [
        (1, signal.SIGKILL, 60.0, "it was killed, or its machine is gone", "ddp", True),
        (0, signal.SIGKILL, 60.0, "it was killed, or its machine is gone", "fsdp2", False),
        (1, signal.SIGSTOP, 4.0, "gave no sign of life for 4 s", "fsdp2", False),
    ],
    ids=["one is killed", "the first is killed", "one gives no sign of life"],
)
def test_the_others_end_soon_name_the_rank_and_the_run_goes_on_to_the_same_bits(
    root, wait_until, is_alive, rank, sent, limit, why, strategy, goes_on
):
    run = root / f"rank_{rank}_{sent.name}"
    (root / "plan.json").write_text(json.dumps({"rank": rank, "signal": sent}))
    process = start(root, run, strategy, "--ranks.time_limit", str(limit))
    while (root / "plan.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)  # until all who may write there have ended
    seconds = time.monotonic() - began
    pids = [int((root / f"pid_{each}").read_text()) for each in (0, 1)]
    lines = [line for line in err.splitlines() if line.startswith("grpovi: error: ")]
    assert len(lines) == 1, err[-3000:]
    assert lines[0].startswith(f"grpovi: error: rank {rank} (process {pids[rank]} on ") and why in lines[0]
    assert seconds < 30
    wait_until(lambda: not any(map(is_alive, pids)), 5)  # a process closes its pipes before it is gone
    assert "Traceback" not in err
    if rank:
        assert process.returncode == 1
        status = json.loads((run / "status.json").read_text())
        assert status["state"] == "failed" and f"rank {rank} (process {pids[rank]}" in status["error"]
    if not goes_on:
        return
    undisturbed = root / "undisturbed"
    assert start(root, undisturbed, strategy).wait(120) == 0
    assert start(root, run, strategy, "--ckpt_path", str(run / "checkpoints" / "last.ckpt")).wait(120) == 0
    assert (run / "model" / "model.safetensors").read_bytes() == (
        undisturbed / "model" / "model.safetensors"
    ).read_bytes()


def test_a_limit_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"ranks.time_limit: got 0.0, expected seconds above 0"):
        RankWatch(0.0)
