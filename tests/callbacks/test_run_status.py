import json
import os
import threading
import time
from datetime import datetime

import lightning as L
import pytest
import torch
from modules.grpo_runs import graded, grpo, prompt_data, quiet, train, trainer

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.callbacks import RunStatus
from grpovi_lightning.callbacks.status import report_warning, rollout_digest


def status(folder):
    return json.loads((folder / "status.json").read_text())


class At(L.Callback):
    """Calls something at the start of one step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.action(trainer)


def raises(error):
    def action(trainer):
        raise error

    return action


def test_a_whole_run_is_finished_and_says_what_it_was(policy_folder, tmp_path):
    module = grpo(policy_folder, adjustment=VarianceIncrease())
    recorded = train(module, tmp_path, 3, RunStatus(tmp_path, 7), validate_every=3)

    found = status(tmp_path)
    expected = {"state": "finished", "seed": 7, "step": 3, "max_steps": 3, "error": None, "warnings": []}
    expected |= {
        "stage": "GRPOModule",
        "adjustment": "VarianceIncrease",
        "adjusts": True,
        "device": "cpu",
        "pid": os.getpid(),
    }
    assert {name: found[name] for name in expected} == expected
    first = recorded.outputs[0]
    assert found["first_rollout"] == rollout_digest(first.rollout.completion_ids, first.rollout.completion_mask)
    assert len(found["held_out"]) == 64 and found["held_out"] == module.trainer.datamodule.held_out_digest()
    assert datetime.fromisoformat(found["started"]) <= datetime.fromisoformat(found["updated"])
    assert datetime.fromisoformat(found["started"]).tzinfo is not None
    assert 0 < found["wall_seconds"] < 60


def test_while_it_trains_the_run_is_running(policy_folder, tmp_path):
    seen = []
    watch = At(2, lambda _: seen.append(status(tmp_path)))
    train(grpo(policy_folder), tmp_path, 3, RunStatus(tmp_path, 1), watch)

    assert seen[0]["state"] == "running"
    assert seen[0]["first_rollout"] is not None


def test_the_record_is_renewed_while_a_long_run_goes_on(policy_folder, tmp_path):
    seen = []

    def slow(prompts, completions, completion_ids, **columns):
        time.sleep(0.6)
        if (tmp_path / "status.json").exists():
            seen.append(status(tmp_path)["step"])
        return graded(prompts, completions, completion_ids)

    train(grpo(policy_folder, slow), tmp_path, 5, RunStatus(tmp_path, 1))

    assert seen == sorted(seen)
    assert seen[-1] >= 2


def test_an_error_is_recorded_in_one_line_and_raised(policy_folder, tmp_path):
    crash = At(1, raises(ValueError("broken\nin two lines")))

    with pytest.raises(ValueError, match="broken"):
        train(grpo(policy_folder), tmp_path, 3, RunStatus(tmp_path, 1), crash)

    found = status(tmp_path)
    assert (found["state"], found["step"]) == ("failed", 1)
    assert found["error"] == "ValueError: broken in two lines"


def test_an_error_without_text_is_named_by_its_type(policy_folder, tmp_path):
    with pytest.raises(ZeroDivisionError):
        train(grpo(policy_folder), tmp_path, 3, RunStatus(tmp_path, 1), At(0, raises(ZeroDivisionError())))

    assert "ZeroDivisionError" in status(tmp_path)["error"]


def test_ctrl_c_leaves_an_interrupted_run_without_an_error(policy_folder, tmp_path):
    with pytest.raises(SystemExit):
        train(grpo(policy_folder), tmp_path, 3, RunStatus(tmp_path, 1), At(2, raises(KeyboardInterrupt())))

    found = status(tmp_path)
    assert (found["state"], found["step"], found["error"]) == ("interrupted", 2, None)


def test_a_resumed_run_adds_its_time_and_keeps_start_warnings_and_first_rollout(policy_folder, tmp_path):
    def warn(trainer):
        report_warning(trainer, "something odd")
        time.sleep(0.5)

    stop = At(1, warn), At(2, raises(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="something odd"):
        train(grpo(policy_folder), tmp_path, 4, RunStatus(tmp_path, 1), *stop, checkpoint_every=1)
    before = status(tmp_path)
    assert before["state"] == "failed"

    train(
        grpo(policy_folder),
        tmp_path,
        4,
        RunStatus(tmp_path, 1),
        checkpoint_every=1,
        ckpt_path=tmp_path / "checkpoints" / "last.ckpt",
    )

    after = status(tmp_path)
    assert (after["state"], after["step"], after["error"]) == ("finished", 4, None)
    assert after["wall_seconds"] > before["wall_seconds"] >= 0.5
    for name in ("started", "first_rollout"):
        assert after[name] == before[name]
    assert after["warnings"] == before["warnings"] == ["something odd"]


def test_a_warning_is_kept_once():
    record = RunStatus("unused", 1)
    for _ in range(3):
        record.warn("the same")
    assert record.content["warnings"] == ("the same",)


def test_a_reader_never_sees_half_a_file(policy_folder, tmp_path):
    record = RunStatus(tmp_path, 1)
    with quiet():
        run = trainer(tmp_path, 1, record)
        run.fit(grpo(policy_folder), prompt_data(tmp_path / "data"))
    record.content["warnings"] = ("x" * 100,) * 3000
    record._write(run, "running")
    stop, problems, reads = threading.Event(), [], []

    def read():
        while not stop.is_set():
            try:
                reads.append(status(tmp_path)["state"])
            except Exception as problem:
                problems.append(problem)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(40):
        record._write(run, "running")
    stop.set()
    reader.join()

    assert problems == [] and len(reads) > 5
    assert [file.name for file in tmp_path.glob("status*")] == ["status.json"]


def test_evaluating_a_finished_run_leaves_its_record_alone_even_when_it_fails(policy_folder, tmp_path):
    module, data = grpo(policy_folder), prompt_data(tmp_path / "data", validation=True)
    train(module, tmp_path, 1, RunStatus(tmp_path, 1), data=data)
    before = (tmp_path / "status.json").read_text()

    class Crash(L.Callback):
        def on_validation_batch_start(self, *_):
            raise RuntimeError("while evaluating")

    with quiet(), pytest.raises(RuntimeError, match="while evaluating"):
        trainer(tmp_path, 1, RunStatus(tmp_path, 1), Crash()).validate(module, data)

    assert (tmp_path / "status.json").read_text() == before


def test_an_error_before_training_starts_is_a_failed_run_of_no_length(policy_folder, tmp_path):
    class Unprepared(L.LightningDataModule):
        def prepare_data(self):
            raise RuntimeError("no data")

        def train_dataloader(self):
            return []

    with quiet(), pytest.raises(RuntimeError, match="no data"):
        trainer(tmp_path, 1, RunStatus(tmp_path, 1)).fit(grpo(policy_folder), Unprepared())

    found = status(tmp_path)
    assert (found["state"], found["error"]) == ("failed", "RuntimeError: no data")
    assert found["wall_seconds"] < 60


def test_the_digest_reads_tokens_and_order_but_no_padding():
    ids = torch.tensor([[4, 5, 0], [6, 7, 8]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    digest = rollout_digest(ids, mask)

    wider = torch.nn.functional.pad(ids, (0, 2), value=9), torch.nn.functional.pad(mask, (0, 2))
    assert rollout_digest(*wider) == digest
    assert rollout_digest(ids.flip(0), mask.flip(0)) != digest
    assert rollout_digest(ids + 1, mask) != digest
    assert rollout_digest(torch.tensor([[4], [5]]), torch.ones(2, 1).bool()) != rollout_digest(
        torch.tensor([[4, 5]]), torch.ones(1, 2).bool()
    )
