from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from helpers.rollouts import rollout_of_logprobs

from grpovi_lightning.structures import PromptBatch

ROWS = [[-1.0, -2.0], [-3.0], [-4.0, -5.0], [-6.0, -7.0]]


def test_a_rollout_groups_rows_of_one_prompt_together():
    rollout = rollout_of_logprobs(ROWS, group_size=2)
    assert rollout.grouped(torch.arange(4)).tolist() == [[0, 1], [2, 3]]
    assert rollout.grouped(torch.zeros(4, 3)).shape == (2, 2, 3)


def test_lengths_count_what_the_mask_keeps():
    assert rollout_of_logprobs(ROWS, group_size=2).lengths.tolist() == [2, 1, 2, 2]


def test_a_rollout_with_a_reference_is_a_new_one():
    rollout = replace(rollout_of_logprobs(ROWS, group_size=2), ref_logprobs=None)
    found = rollout.with_reference(torch.ones(4, 2))
    assert rollout.ref_logprobs is None and torch.equal(found.ref_logprobs, torch.ones(4, 2))
    assert found.completion_ids is rollout.completion_ids


def test_neither_batch_can_be_written_to():
    rollout = rollout_of_logprobs(ROWS, group_size=2)
    with pytest.raises(FrozenInstanceError):
        rollout.step = 3
    with pytest.raises(FrozenInstanceError):
        rollout.prompts.texts = []


@pytest.mark.parametrize(
    "wrong",
    [{"group_size": 3}, {"texts": ["one"]}, {"completion_mask": torch.ones(4, 3)}, {"truncated": torch.zeros(2)}],
)
def test_parts_that_do_not_fit_each_other_are_no_rollout(wrong):
    with pytest.raises(AssertionError):
        replace(rollout_of_logprobs(ROWS, group_size=2), **wrong)


def test_moving_a_rollout_moves_every_tensor_and_the_prompts():
    moved = rollout_of_logprobs(ROWS, group_size=2).to("meta")
    tensors = [getattr(moved, field.name) for field in fields(moved)]
    tensors = [value for value in tensors if isinstance(value, torch.Tensor)] + [moved.prompts.indices]
    assert len(tensors) == 8 and all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.texts == ["text"] * 4 and moved.group_size == 2


def test_prompts_take_the_arguments_lightning_moves_batches_with():
    batch = PromptBatch(["a", "b"], torch.tensor([4, 9]), {"answer": [1, 2]})
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert len(moved) == 2 and moved.indices.device.type == "meta" and moved.columns == {"answer": [1, 2]}
