"""Replaying recorded completions: here those of this project, written as `trl_record.py` writes TRL's."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from grpovi_lightning import metric_keys as keys

ROOT = Path(__file__).parents[1]
MODULES = ("replay_trl", "training_step", "workload", "write_workload")
SIZES = {"vocab": 16, "hidden": 16, "layers": 2, "prompt": 8, "completion": 6, "prompts-per-step": 2, "group-size": 4}
STEPS = 3


@pytest.fixture(scope="module")
def scripts():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.syspath_prepend(str(ROOT))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def workload(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workloads") / "tiny"
    assert scripts.write_workload.main([str(folder), *(f"--{name}={value}" for name, value in SIZES.items())]) == 0
    return folder


@pytest.fixture(scope="module")
def record(scripts, workload, tmp_path_factory):
    """What a training of this project sampled, and its weights."""
    tensors = {}

    class Recording(scripts.training_step.StepTimes):
        def on_fit_start(self, trainer, pl_module):
            tensors["start/weights"] = scripts.replay_trl.flat_weights(pl_module.policy)
            generate = pl_module.engine.generate

            def noted(*arguments):
                rollout = generate(*arguments)
                for name in ("prompt_ids", "prompt_mask"):
                    rows = getattr(rollout, name).long().repeat_interleave(rollout.group_size, dim=0)
                    tensors[f"{rollout.step}/{name}"] = rows
                for name in ("completion_ids", "completion_mask"):
                    tensors[f"{rollout.step}/{name}"] = getattr(rollout, name).long().clone()
                return rollout

            pl_module.engine.generate = noted

        def on_train_batch_end(self, trainer, pl_module, *_):
            super().on_train_batch_end(trainer)
            tensors[f"{len(self.ends) - 1}/weights"] = scripts.replay_trl.flat_weights(pl_module.policy)

    times = Recording([keys.KL, keys.REWARD])
    scripts.training_step.train(scripts.workload.read_workload(workload), STEPS, 5, times)
    logged = [{"kl": row[keys.KL], "reward": row[keys.REWARD]} for row in times.scalars]
    path = tmp_path_factory.mktemp("record") / "record.safetensors"
    save_file(tensors, path, {"logged": json.dumps(logged)})
    return scripts.replay_trl.Record(path)


def test_a_record_is_trained_on_again_with_the_same_weights_kl_and_rewards(scripts, workload, record):
    replay = scripts.replay_trl.replayed(scripts.workload.read_workload(workload), record)
    rows = scripts.replay_trl.rows(record, replay)
    assert len(rows) == STEPS and max(difference for difference, *_ in rows) < 1e-2
    for _, their_kl, our_kl, their_reward, our_reward in rows:
        assert our_kl == pytest.approx(their_kl, rel=1e-3, abs=1e-7) and our_reward == their_reward
    assert rows[-1][1] > 1e-4 and len({reward for *_, reward in rows}) > 1


def test_a_training_that_differs_is_seen(scripts, workload, record):
    work = scripts.workload.read_workload(workload)
    other = type(work)(**(vars(work) | {"beta": 1.0}))
    rows = scripts.replay_trl.rows(record, scripts.replay_trl.replayed(other, record))
    assert rows[-1][0] > 0.03


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--trl-python=nowhere/python"], "--trl-python: got nowhere/python, which does not run: No such file"),
        ([f"--trl-python={sys.executable}"], "where TRL is not installed; benchmarks/README.md says how"),
        (["--trl-python=x", "--seeds=0"], "--seeds: got 0, expected at least 1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(scripts, workload, capsys, arguments, complaint):
    assert scripts.replay_trl.main([str(workload), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("replay_trl.py: error: ") and complaint in line
