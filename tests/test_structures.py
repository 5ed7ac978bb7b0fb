from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from helpers.rollouts import rollout_of_logprobs
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.ops import pad_left, pad_right
from grpovi_lightning.structures import Experience, PromptBatch, Rollout

ROWS = [[-1.0, -2.0], [-3.0], [-4.0, -5.0], [-6.0, -7.0]]


def test_a_rollout_groups_rows_of_one_prompt_together():
    rollout = rollout_of_logprobs(ROWS, group_size=2)
    assert rollout.grouped(torch.arange(4)).tolist() == [[0, 1], [2, 3]]
    assert rollout.grouped(torch.zeros(4, 3)).shape == (2, 2, 3)


def test_lengths_count_what_the_mask_keeps():
    assert rollout_of_logprobs(ROWS, group_size=2).lengths.tolist() == [2, 1, 2, 2]


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


# Parts of batches. No two tokens, numbers, texts or prompts of these rollouts are equal.

PAD = 7


def uneven(prompt_lengths, completion_lengths, reference=True, first=100):
    """A rollout of prompts and completions of these lengths, [P] and [P][G]; its tokens count up from `first`."""
    numbers = iter(range(first, first + 10_000))
    rows = [[next(numbers) for _ in range(length)] for length in prompt_lengths]
    flat = [length for group in completion_lengths for length in group]
    prompt_ids, prompt_mask = pad_left(rows, PAD)
    completion_ids, completion_mask = pad_right([[next(numbers) for _ in range(length)] for length in flat], PAD)
    indices = [row[0] for row in rows]
    return Rollout(
        prompts=PromptBatch([f"prompt {i}" for i in indices], torch.tensor(indices), {"answer": [-i for i in indices]}),
        group_size=len(completion_lengths[0]),
        step=5,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        old_logprobs=numbered(completion_ids, completion_mask, 0.5),
        truncated=torch.tensor([(place + place // 3) % 2 == 0 for place in range(len(flat))]),
        texts=[f"completion {row[0]}" for row in completion_ids.tolist()],
        ref_logprobs=numbered(completion_ids, completion_mask, 0.25) if reference else None,
    )


def numbered(ids, mask, offset):
    return torch.where(mask, -(ids + offset), 0.0)


def contents(rollout):
    """What a rollout says, prompt by prompt, as plain values without padding."""
    completions = []
    for row, kept in enumerate(rollout.completion_mask):
        per_token = [rollout.completion_ids, rollout.old_logprobs, rollout.ref_logprobs]
        tokens = [None if values is None else values[row][kept].tolist() for values in per_token]
        completions.append((tokens, bool(rollout.truncated[row]), rollout.texts[row]))
    size = rollout.group_size
    return [
        {
            "text": rollout.prompts.texts[p],
            "index": int(rollout.prompts.indices[p]),
            "columns": {name: values[p] for name, values in rollout.prompts.columns.items()},
            "tokens": rollout.prompt_ids[p][rollout.prompt_mask[p]].tolist(),
            "group": completions[p * size : (p + 1) * size],
        }
        for p in range(len(rollout.prompts))
    ]


def padded_on_the_right_sides(rollout):
    """Left of prompts and right of completions alone, and there as little as the longest ones need."""
    prompts, completions = rollout.prompt_mask, rollout.completion_mask
    assert prompts.dtype == completions.dtype == torch.bool
    assert torch.equal(prompts.sort(dim=1).values, prompts) and bool(prompts.any(dim=0).all())
    assert torch.equal(completions.sort(dim=1, descending=True).values, completions)
    assert bool(completions.any(dim=0).all())
    for values in (rollout.old_logprobs, rollout.ref_logprobs):
        assert values is None or not values[~completions].any()


@st.composite
def uneven_rollouts(draw):
    lengths, n_prompts, size = st.integers(1, 5), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    groups = st.lists(st.lists(lengths, min_size=size, max_size=size), min_size=n_prompts, max_size=n_prompts)
    prompts = draw(st.lists(lengths, min_size=n_prompts, max_size=n_prompts))
    return uneven(prompts, draw(groups), draw(st.booleans()))


@given(uneven_rollouts(), st.data())
def test_kept_completions_stay_with_their_prompts_in_the_order_asked_for_and_without_the_padding_of_others(
    rollout, data
):
    size = rollout.group_size
    order = st.permutations(range(size))
    m = data.draw(st.integers(1, size))
    places = [data.draw(order)[:m] for _ in rollout.prompts.texts]
    kept = rollout.keep(torch.tensor(places))
    expected = [
        {**prompt, "group": [prompt["group"][place] for place in chosen]}
        for prompt, chosen in zip(contents(rollout), places, strict=True)
    ]
    assert contents(kept) == expected and kept.step == rollout.step
    padded_on_the_right_sides(kept)


@given(uneven_rollouts(), st.data())
def test_selected_prompts_come_whole_in_the_order_asked_for_and_without_the_padding_of_others(rollout, data):
    places = st.lists(st.integers(0, len(rollout.prompts) - 1), min_size=1, unique=True)
    chosen = data.draw(places)
    part = rollout.select(chosen)
    whole = contents(rollout)
    assert contents(part) == [whole[p] for p in chosen]
    padded_on_the_right_sides(part)
    assert (part.group_size, part.step) == (rollout.group_size, rollout.step)


@given(uneven_rollouts(), st.data())
def test_the_parts_of_a_rollout_joined_again_say_the_same(rollout, data):
    order = data.draw(st.permutations(range(len(rollout.prompts))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order) - 1)))) if len(order) > 1 else []
    edges = zip([0, *cuts], [*cuts, len(order)], strict=True)
    joined = Rollout.concatenate([rollout.select(order[start:end]) for start, end in edges])
    whole = contents(rollout)
    assert contents(joined) == [whole[p] for p in order]
    padded_on_the_right_sides(joined)
    assert (joined.group_size, joined.step) == (rollout.group_size, rollout.step)


@given(uneven_rollouts())
def test_a_rollout_without_a_reference_has_none_in_its_parts_either(rollout):
    part = rollout.select([len(rollout.prompts) - 1])
    both = Rollout.concatenate([rollout, part])
    assert (rollout.ref_logprobs is None) == (part.ref_logprobs is None) == (both.ref_logprobs is None)


def test_selecting_every_prompt_changes_nothing():
    rollout = uneven([2, 1], [[1, 3], [2, 2]])
    found = rollout.select([0, 1])
    for field in fields(rollout):
        value = getattr(rollout, field.name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, field.name), value), field.name


def test_selecting_leaves_the_rollout_as_it_was():
    rollout = uneven([2, 1, 4], [[1, 3], [2, 2], [1, 1]])
    before = contents(rollout)
    rollout.select([2, 0])
    assert contents(rollout) == before and rollout.prompt_ids.shape == (3, 4)


def test_joined_rollouts_of_unequal_widths_are_padded_left_before_prompts_and_right_after_completions():
    narrow, wide = uneven([1], [[3, 1]]), uneven([3], [[1, 2]], first=200)
    joined = Rollout.concatenate([narrow, wide])
    yes, no = True, False
    assert joined.prompt_mask.tolist() == [[no, no, yes], [yes, yes, yes]]
    assert joined.prompt_ids[0, 2] == 100 and joined.prompt_ids[1].tolist() == [200, 201, 202]
    assert joined.completion_mask.tolist() == [[yes, yes, yes], [yes, no, no], [yes, no, no], [yes, yes, no]]
    assert joined.completion_ids[0].tolist() == [101, 102, 103] and joined.completion_ids[3, :2].tolist() == [204, 205]
    assert joined.old_logprobs[3].tolist() == [-204.5, -205.5, 0.0]
    assert joined.ref_logprobs[3].tolist() == [-204.25, -205.25, 0.0]


def test_the_rows_of_a_prompt_are_those_of_its_group():
    rollout = uneven([1, 1, 1], [[1, 1], [1, 1], [1, 1]])
    assert rollout.rows([2, 0]).tolist() == [4, 5, 0, 1]
    assert rollout.rows([]).tolist() == [] and rollout.rows([]).dtype == torch.long


def prompt_batch(first, count, spare=None):
    indices = range(first, first + count)
    return PromptBatch([f"p{i}" for i in indices], torch.tensor(indices), {"answer": [10 * i for i in indices]}, spare)


def test_selected_prompts_keep_their_numbers_and_columns_and_have_no_spare_ones():
    found = prompt_batch(3, 4, spare=prompt_batch(20, 2)).select([2, 0])
    assert found.texts == ["p5", "p3"] and found.indices.tolist() == [5, 3]
    assert found.columns == {"answer": [50, 30]} and found.spare is None


def test_prompts_may_be_selected_by_a_range():
    assert prompt_batch(3, 4).select(range(1, 3)).indices.tolist() == [4, 5]


def test_joined_prompts_stand_one_after_the_other_and_have_no_spare_ones():
    found = PromptBatch.concatenate([prompt_batch(8, 1, spare=prompt_batch(20, 2)), prompt_batch(2, 2)])
    assert found.texts == ["p8", "p2", "p3"] and found.indices.tolist() == [8, 2, 3]
    assert found.columns == {"answer": [80, 20, 30]} and found.spare is None and len(found) == 3


def test_spare_prompts_move_with_the_others():
    moved = prompt_batch(3, 2, spare=prompt_batch(20, 1)).to("meta", non_blocking=True)
    assert moved.indices.device.type == moved.spare.indices.device.type == "meta"
    assert moved.spare.texts == ["p20"] and moved.spare.columns == {"answer": [200]}
    assert prompt_batch(3, 2).to("cpu").spare is None


def test_a_rollout_may_be_sampled_for_prompts_that_have_spare_ones_beside_them():
    rollout = uneven([1, 2], [[1, 1], [1, 1]])
    rollout = replace(rollout, prompts=replace(rollout.prompts, spare=prompt_batch(0, 3)))
    assert len(rollout.prompts) == 2
    assert rollout.select([0, 1]).prompts.spare is None
    assert Rollout.concatenate([rollout, rollout]).prompts.spare is None


def experience_of(rollout, old_logprobs=True, sampling_weights=True, selected=True):
    ids, mask = rollout.completion_ids, rollout.completion_mask
    return Experience(
        rollout,
        advantages=ids[:, 0] + 0.75,
        loss_mask=mask & (ids[:, :1] % 2 == 0),  # some completions are left out as a whole
        old_logprobs=numbered(ids, mask, 0.125) if old_logprobs else None,
        sampling_weights=torch.where(mask, ids + 0.0625, 1.0) if sampling_weights else None,
        selected=mask & (ids % 3 == 0) if selected else None,
    )


@given(uneven_rollouts(), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_the_parts_of_an_experience_stay_in_line_with_their_completions(rollout, old, weights, selected, data):
    experience = experience_of(rollout, old, weights, selected)
    chosen = data.draw(st.lists(st.integers(0, len(rollout.prompts) - 1), min_size=1, unique=True))
    part = experience.select(chosen)
    whole = contents(rollout)
    assert contents(part.rollout) == [whole[p] for p in chosen]
    # Every number tells which token it belongs to, so the part's own tokens say what must stand beside them.
    expected = experience_of(part.rollout, old, weights, selected)
    assert torch.equal(part.advantages, expected.advantages)
    assert torch.equal(part.loss_mask, expected.loss_mask) and part.loss_mask.dtype == torch.bool
    for name, there in (("old_logprobs", old), ("sampling_weights", weights), ("selected", selected)):
        found = getattr(part, name)
        assert torch.equal(found, getattr(expected, name)) if there else found is None


def test_a_completion_that_is_left_out_still_counts_for_the_length_of_its_part():
    rollout = uneven([1, 1], [[1, 4], [2, 1]])
    experience = replace(experience_of(rollout), loss_mask=torch.zeros(4, 4, dtype=torch.bool))
    part = experience.select([0])
    assert part.loss_mask.shape == part.rollout.completion_ids.shape == part.old_logprobs.shape == (2, 4)
    assert experience.select([1]).loss_mask.shape == (2, 2)
