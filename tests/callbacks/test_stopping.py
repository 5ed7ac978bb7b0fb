"""SIGTERM: the run is saved where it stops, says so by its exit status, and goes on to the same bits."""

import json
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from helpers.own_input import run_config, write_own_input, write_yaml
from helpers.two_processes import run_in_two_processes
from modules.grpo_runs import scalars

from analysis import load_completions
from grpovi_lightning.cli import main
from grpovi_lightning.run_record.status import read_status

REWARDS = '''
import json, os, pathlib, signal

def lengths(completion_ids, trainer_state):
    """Sends SIGTERM in the training step, or in the evaluation, that stop.json names."""
    plan = pathlib.Path("stop.json")
    if plan.exists():
        stop = json.loads(plan.read_text())
        evaluates = len(completion_ids) > 8
        rank = int(os.environ.get("LOCAL_RANK", 0))
        if (stop["step"], stop["evaluates"], stop["rank"]) == (trainer_state.step, evaluates, rank):
            plan.rename("stopped.json")
            os.kill(os.getpid(), signal.SIGTERM)
    return [-abs(len(ids) - 4) + 0.01 * (sum(ids) % 7) for ids in completion_ids]
'''
STEPS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    write_own_input(folder)
    (folder / "sigterm_rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture
def folder(root, monkeypatch):
    """Where the commands run; no test has left a plan to stop there."""
    for name in ("stop.json", "stopped.json"):
        (root / name).unlink(missing_ok=True)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    return root


def config_of(root, run, **trainer):
    reward = {
        "class_path": "grpovi_lightning.rewards.RewardFunction",
        "init_args": {"function": "sigterm_rewards.lengths"},
    }
    config = run_config(
        root, run, reward=reward, adjustment={"class_path": "grpovi_lightning.adjustment.VarianceIncrease"}
    )
    config["trainer"] |= {"max_steps": STEPS, "val_check_interval": 2} | trainer
    config["checkpoint"] = {"every_n_train_steps": 2}
    return write_yaml(root / f"{run.name}.yaml", config)


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def equal_runs(first, second):
    mine, theirs = weights(first), weights(second)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if name != "train_seconds")
    assert repr(scalars(first)) == repr(scalars(second))
    ours, others = (load_completions(run).drop(columns=["arm", "run"]) for run in (first, second))
    assert ours.to_json() == others.to_json()


@pytest.mark.parametrize(
    ("step", "evaluates", "saved"),
    [(2, False, 3), (3, False, 4), (2, True, 2), (0, True, None)],
    ids=["in a step", "in a step that ends in an evaluation", "in an evaluation", "in the evaluation at the start"],
)
def test_a_run_that_is_asked_to_stop_is_saved_says_so_and_goes_on_to_the_same_bits(
    folder, capfd, step, evaluates, saved
):
    whole, run = folder / "whole", folder / f"run_{step}_{evaluates}"
    if not whole.exists():
        assert main(["fit", "--config", config_of(folder, whole)]) == 0
    (folder / "stop.json").write_text(json.dumps({"step": step, "evaluates": evaluates, "rank": 0}))
    before = signal.getsignal(signal.SIGTERM)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", config_of(folder, run)])
    assert ended.value.code == 143 and (folder / "stopped.json").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    status = read_status(run)
    assert (status.state, status.error, status.step) == ("interrupted", "stopped by SIGTERM", saved or 0)
    last = run / "checkpoints" / "last.ckpt"
    said = f"step {saved} of {STEPS}; continue it with --ckpt_path {last}" if saved else "begin it anew with --restart"
    assert "grpovi: the run was stopped by SIGTERM, at " in (err := capfd.readouterr().err) and said in err
    go_on = ["--ckpt_path", str(last)] if saved else ["--restart"]
    assert main(["fit", "--config", config_of(folder, run), *go_on]) == 0
    equal_runs(run, whole)


def test_a_run_that_has_done_its_last_step_ends_as_usual(folder):
    (folder / "stop.json").write_text(json.dumps({"step": STEPS - 1, "evaluates": False, "rank": 0}))
    assert main(["fit", "--config", config_of(folder, folder / "last")]) == 0
    assert (folder / "stopped.json").exists() and read_status(folder / "last").state == "finished"


def _fit(rank, folder, file):
    environment, here = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}, os.getcwd()
    os.environ |= environment
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = main(["fit", "--config", file])
    except SystemExit as ended:
        status = ended.code
    finally:
        os.chdir(here)
        for name in environment:
            os.environ.pop(name, None)
    (Path(folder) / f"status_{rank}").write_text(str(status))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_ranks_stop_after_the_same_step_whichever_was_asked(folder, strategy):
    (folder / "stop.json").write_text(json.dumps({"step": 2, "evaluates": False, "rank": 1}))
    file = config_of(folder, folder / strategy, devices=2, strategy=strategy)
    run_in_two_processes(_fit, str(folder), file)
    assert [(folder / f"status_{rank}").read_text() for rank in (0, 1)] == ["143", "143"]
    assert (folder / strategy / "checkpoints" / "last.ckpt").resolve().name == "step=3.ckpt"
    assert read_status(folder / strategy).state == "interrupted"
