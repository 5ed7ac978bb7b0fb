"""One study on this machine, on a Ray cluster that loses a worker, and as jobs of submitit's that are pre-empted."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import psutil
import pytest
import yaml
from helpers.own_input import run_config, write_yaml
from ray.cluster_utils import Cluster

from analysis import load_completions
from analysis.loading import load_runs
from grpovi_lightning.cli import main
from grpovi_lightning.run_record.status import read_status

pytestmark = pytest.mark.slow

SLOW_REWARD = """import time

from my_rewards import digits_in_common


def slowly(*arguments, **columns):
    time.sleep(0.3)
    return digits_in_common(*arguments, **columns)
"""
STEPS = 12
ARMS = {"grpo": {}, "grpovi": {"adjustment": {"class_path": "grpovi_lightning.adjustment.VarianceIncrease"}}}


@pytest.fixture(scope="module")
def study(inputs):
    """A study of two arms and one seed, run here; its reward is a function in the folder that compare is started in."""
    (inputs / "slow_rewards.py").write_text(SLOW_REWARD)
    reward = {
        "class_path": "grpovi_lightning.rewards.RewardFunction",
        "init_args": {"function": "slow_rewards.slowly", "name": "digits"},
    }
    for arm, changes in ARMS.items():
        config = run_config(inputs, inputs / "unused", reward=reward, **changes)
        config["trainer"] |= {"max_steps": STEPS, "val_check_interval": STEPS}
        config["checkpoint"] = {"every_n_train_steps": 2}
        write_yaml(inputs / f"{arm}.yaml", config)
    arms = {arm: {"configs": [f"{arm}.yaml"]} for arm in ARMS}
    (inputs / "study.yaml").write_text(yaml.safe_dump({"name": "placed", "seeds": [1], "arms": arms}))
    assert compare(inputs, "here") == 0
    return inputs


def compare(root, output, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return main(["compare", "study.yaml", "--output", output, *options])


def curves(folder):
    runs = load_runs(folder)
    kept = runs[~runs.metric.str.contains("time|seconds|throughput")]
    return {(row.metric, row.step): row.value for row in kept.itertuples()}


def check_same(study, output):
    """Hold every run against the one that was run here: weights, curves and completions, bit for bit."""
    for arm in ARMS:
        here, there = (study / place / "placed" / "arms" / arm / "seed_1" for place in ("here", output))
        assert read_status(there).state == "finished"
        weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (here, there)]
        assert weights[0] == weights[1], arm
        assert curves(here.parent) == curves(there.parent), arm
        texts = [load_completions(folder).drop(columns=["arm", "run", "seed"]).to_json() for folder in (here, there)]
        assert texts[0] == texts[1], arm


@contextmanager
def meanwhile(what):
    """Do something in a thread while the block runs; its error is the block's."""
    errors = []

    def guarded():
        try:
            what()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join()
    assert errors == []


def processes_of(study, output, arm):
    """The run that has saved and goes on, the keeper, and whoever has started the keeper."""
    run = study / output / "placed" / "arms" / arm / "seed_1"
    lock = study / output / "placed" / ".locks" / f"arm-{arm}-seed_1"
    deadline = time.monotonic() + 90
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)
    fit = psutil.Process(int(lock.read_text().split()[0]))
    keeper = fit.parent()
    worker = keeper.parent().parent()
    assert "launchers.keeper" in " ".join(keeper.cmdline())
    assert read_status(run).step < STEPS
    return fit, keeper, worker


def test_a_study_that_loses_one_of_two_ray_workers_ends_with_the_same_bits(study, capfd):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def lose_a_node():
        fit, keeper, worker = processes_of(study, "ray", "grpo")
        raylet = worker.parent()
        (node,) = [node for node in nodes if node.all_processes["raylet"][0].process.pid == raylet.pid]
        for process in (raylet, worker, keeper, fit):
            process.kill()
        cluster.remove_node(node, allow_graceful=False)

    try:
        with meanwhile(lose_a_node):
            assert compare(study, "ray", "--launcher", "ray", "--ray-address", cluster.address) == 0
    finally:
        cluster.shutdown()
    said = capfd.readouterr().out
    assert "arm grpo seed 1: lost its worker on " in said
    assert "retry 1 of 3, from its last checkpoint" in said
    log = (study / "ray" / "placed" / "arms" / "grpo" / "seed_1" / "process.log").read_text()
    assert log.count("] grpovi fit") == 2 and "--ckpt_path" in log
    check_same(study, "ray")


def test_a_study_of_submitit_jobs_of_which_one_is_pre_empted_ends_with_the_same_bits(study, capfd):
    settings = study / "slurm.yaml"
    settings.write_text("cluster: local\n")

    def pre_empt():
        _, _, job = processes_of(study, "slurm", "grpo")
        os.kill(job.pid, signal.SIGUSR2)

    with meanwhile(pre_empt):
        assert compare(study, "slurm", "--launcher", "slurm", "--launcher-settings", str(settings)) == 0
    assert "arm grpo seed 1: was taken off its machine; goes on on " in capfd.readouterr().out
    log = (study / "slurm" / "placed" / "arms" / "grpo" / "seed_1" / "process.log").read_text()
    assert log.count("] grpovi fit") == 2 and "--ckpt_path" in log
    check_same(study, "slurm")
