"""An update that does not fit into memory: once more in halves, with the same gradient, or one line."""

import logging
from dataclasses import replace

import pytest
import torch
from modules.grpo_runs import grpo, train

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.losses import GRPOLoss


class Fits(GRPOLoss):
    """GRPO's loss on a device that holds so many completions."""

    room = 10**6

    def __call__(self, logprobs, *rest, **more):
        if len(logprobs) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory.\nTried to allocate {len(logprobs)} rows")
        return super().__call__(logprobs, *rest, **more)


def run(policy_folder, folder, room):
    """Two steps of three prompts with four completions each."""
    loss = Fits()
    loss.room = room
    module = grpo(policy_folder, loss=loss)
    recorder = train(module, folder, 2)
    return module, recorder


def test_it_goes_on_in_halves_with_the_same_gradient_and_says_so(policy_folder, tmp_path, caplog):
    _, whole = run(policy_folder, tmp_path / "whole", 12)
    with caplog.at_level(logging.WARNING, logger="grpovi_lightning"):
        module, halved = run(policy_folder, tmp_path / "halved", 8)
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert said == [
        "step 0: out of memory in an update of 3 prompts a micro-batch (CUDA out of memory. Tried to allocate 12 "
        "rows); going on with 2. Set updates.prompts_per_micro_batch to 2 for the next run"
    ], "the second step begins with the smaller size"
    assert module.updater.settings == replace(module.updater.settings, prompts_per_micro_batch=2)
    assert whole.before is not None
    for name, values in whole.weights[-1].items():
        torch.testing.assert_close(halved.weights[-1][name], values, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(values, whole.before[name]) for name, values in whole.weights[-1].items())


@pytest.mark.parametrize(("room", "prompts"), [(7, 2), (0, 2)], ids=["half is too much", "nothing fits"])
def test_what_does_not_fit_in_halves_either_is_one_line(policy_folder, tmp_path, room, prompts):
    said = rf"^step 0: out of memory in an update of {prompts} prompts a micro-batch \(CUDA out of memory. .*\); set "
    with pytest.raises(TrainingError, match=said) as error:
        run(policy_folder, tmp_path, room)
    assert "\n" not in str(error.value) and "--ckpt_path" in str(error.value)


def test_one_prompt_cannot_be_halved(policy_folder, tmp_path):
    loss = Fits()
    loss.room = 3
    module = grpo(policy_folder, loss=loss, prompts_per_micro_batch=1)
    with pytest.raises(TrainingError, match="out of memory in an update of 1 prompts a micro-batch"):
        train(module, tmp_path, 1)
