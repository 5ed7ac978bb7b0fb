"""Which prompts are updated on together, and which go through the model at once."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers.rollouts import rollout_of_logprobs
from hypothesis import assume, given
from hypothesis import strategies as st

from grpovi_lightning.modules.batching import micro_batches, minibatches


class TestMinibatches:
    @given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**33), st.integers(0, 2**33))
    def test_every_pass_covers_each_prompt_once_in_parts_of_one_size(self, parts, size, passes, seed, step):
        found = list(minibatches(parts * size, passes, parts, seed, step))
        assert len(found) == passes * parts and all(len(part) == size for part in found)
        for which in range(passes):
            one_pass = found[which * parts : (which + 1) * parts]
            assert sorted(p for part in one_pass for p in part) == list(range(parts * size))

    @pytest.mark.parametrize("passes", [1, 3])
    def test_one_minibatch_is_the_rollout_in_its_own_order_every_time(self, passes):
        for seed, step in ((0, 0), (1, 7)):
            assert list(minibatches(5, passes, 1, seed, step)) == [[0, 1, 2, 3, 4]] * passes

    def test_several_come_in_another_order_in_every_pass_and_step_and_for_every_seed(self):
        orders = [
            tuple(part[0] for part in list(minibatches(16, 3, 8, seed, step))[8 * which : 8 * which + 8])
            for seed in (0, 1)
            for step in (0, 1, 2)
            for which in range(3)
        ]
        assert len(set(orders)) == len(orders) == 18

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_the_parts_of_all_ranks_make_up_the_minibatch_of_one_process(self, ranks):
        alone = list(minibatches(12 * ranks, 2, 4, 1, 7))
        for mine, whole in zip(minibatches(12, 2, 4, 1, 7), alone, strict=True):
            assert [rank * 12 + p for rank in range(ranks) for p in mine] == whole

    def test_they_are_a_pure_function_of_seed_step_and_pass(self):
        short, long = list(minibatches(12, 2, 3, 5, 9)), list(minibatches(12, 4, 3, 5, 9))
        torch.manual_seed(0)
        assert list(minibatches(12, 2, 3, 5, 9)) == short == long[:6]


def rollout_of_lengths(prompt_lengths, completion_lengths):
    """A rollout of prompts and completions of these lengths, [P] and [P][G]."""
    rows = [[-1.0] * length for group in completion_lengths for length in group]
    width = max(prompt_lengths)
    mask = torch.tensor([[place >= width - length for place in range(width)] for length in prompt_lengths])
    return replace(
        rollout_of_logprobs(rows, len(completion_lengths[0])),
        prompt_ids=torch.zeros(mask.shape, dtype=torch.long),
        prompt_mask=mask,
    )


def tokens(rollout, part):
    """What goes through the model for a part: its own tensors, padding included."""
    some = rollout.select(part)
    return some.prompt_ids.numel() + some.completion_ids.numel()


def in_given_order(rollout, prompts, max_prompts, max_tokens):
    """Parts filled one after the other without sorting."""
    parts = []
    for prompt in prompts:
        grown = [*(parts[-1] if parts else []), prompt]
        fits = len(grown) <= (max_prompts or len(grown)) and tokens(rollout, grown) <= (max_tokens or torch.inf)
        if len(grown) > 1 and fits:
            parts[-1] = grown
        else:
            parts.append([prompt])
    return parts


LENGTHS = st.integers(1, 9)
LIMITS = {
    "max_prompts": st.none() | st.integers(1, 7),
    "max_tokens": st.none() | st.integers(1, 150),
}


@st.composite
def rollouts(draw, prompt_lengths=LENGTHS, most=7):
    n_prompts, size = draw(st.integers(1, most)), draw(st.integers(1, 3))
    groups = st.lists(st.lists(LENGTHS, min_size=size, max_size=size), min_size=n_prompts, max_size=n_prompts)
    prompts = draw(st.lists(prompt_lengths, min_size=n_prompts, max_size=n_prompts))
    return rollout_of_lengths(prompts, draw(groups))


def some_prompts(data, rollout):
    return data.draw(st.lists(st.integers(0, len(rollout.prompts) - 1), min_size=1, unique=True))


class TestMicroBatches:
    @given(rollouts(), st.fixed_dictionaries(LIMITS), st.integers(1, 9), st.data())
    def test_they_are_a_partition_within_the_limits_and_as_many_as_asked_for(self, rollout, limits, at_least, data):
        prompts = some_prompts(data, rollout)
        before = list(prompts)
        parts = micro_batches(rollout, prompts, **limits, at_least=at_least)
        assert sorted(p for part in parts for p in part) == sorted(before) and prompts == before
        assert all(parts), "no part is empty"
        assert len(parts) >= min(at_least, len(prompts))
        if limits["max_prompts"] is not None:
            assert max(map(len, parts)) <= limits["max_prompts"]
        if limits["max_tokens"] is not None:
            assert all(len(part) == 1 or tokens(rollout, part) <= limits["max_tokens"] for part in parts)

    @given(rollouts(), st.fixed_dictionaries(LIMITS), st.data())
    def test_a_larger_at_least_only_cuts_parts_further(self, rollout, limits, data):
        prompts = some_prompts(data, rollout)
        fewest = micro_batches(rollout, prompts, **limits)
        for at_least in range(1, len(prompts) + 1):
            parts = micro_batches(rollout, prompts, **limits, at_least=at_least)
            assert len(parts) == max(at_least, len(fewest))
            if limits != {"max_prompts": None, "max_tokens": None}:
                assert [p for part in parts for p in part] == [p for part in fewest for p in part]

    @given(rollouts(), st.data())
    def test_without_limits_there_is_one_part_in_the_given_order(self, rollout, data):
        prompts = some_prompts(data, rollout)
        assert micro_batches(rollout, prompts, None, None) == [prompts]

    @given(rollouts(), st.integers(1, 150), st.data())
    def test_no_part_could_take_the_first_prompt_of_the_next(self, rollout, max_tokens, data):
        parts = micro_batches(rollout, some_prompts(data, rollout), None, max_tokens)
        for part, following in pairwise(parts):
            assert tokens(rollout, [*part, following[0]]) > max_tokens

    @given(rollouts(), st.integers(1, 7), st.data())
    def test_the_costliest_groups_come_first(self, rollout, max_prompts, data):
        parts = micro_batches(rollout, some_prompts(data, rollout), max_prompts, None)
        costs = [tokens(rollout, [p]) for part in parts for p in part]
        assert costs == sorted(costs, reverse=True)

    @given(rollouts(prompt_lengths=st.just(4)), st.fixed_dictionaries(LIMITS), st.data())
    def test_prompts_of_one_length_go_into_no_more_parts_than_unsorted(self, rollout, limits, data):
        prompts = some_prompts(data, rollout)
        assume(limits != {"max_prompts": None, "max_tokens": None})
        assert len(micro_batches(rollout, prompts, **limits)) <= len(in_given_order(rollout, prompts, **limits))

    @given(rollouts(prompt_lengths=st.just(4)), st.data())
    def test_full_parts_of_prompts_of_one_length_hold_no_more_padding_than_unsorted(self, rollout, data):
        prompts = some_prompts(data, rollout)
        size = data.draw(st.sampled_from([k for k in range(1, len(prompts) + 1) if len(prompts) % k == 0]))
        parts, unsorted = micro_batches(rollout, prompts, size, None), in_given_order(rollout, prompts, size, None)
        assert sum(tokens(rollout, part) for part in parts) <= sum(tokens(rollout, part) for part in unsorted)

    def test_by_hand(self):
        # Tokens alone: 2 + 2 * 8 = 18, 1 + 2 * 2 = 5, 1 + 2 * 7 = 15, 5 + 2 * 1 = 7. Order: 0, 2, 3, 1.
        rollout = rollout_of_lengths([2, 1, 1, 5], [[1, 8], [2, 2], [7, 3], [1, 1]])
        assert micro_batches(rollout, [0, 1, 2, 3], 2, None) == [[0, 2], [3, 1]]
        assert micro_batches(rollout, [0, 1, 2, 3], None, 36) == [[0, 2], [3, 1]]  # 2 * (2 + 2 * 8) is just 36
        assert micro_batches(rollout, [0, 1, 2, 3], None, 35) == [[0], [2], [3, 1]]  # 2 * (5 + 2 * 7) = 38
        assert micro_batches(rollout, [0, 1, 2, 3], None, 18) == [[0], [2], [3, 1]]  # 2 * (5 + 2 * 2) = 18
        assert micro_batches(rollout, [0, 1, 2, 3], None, 17) == [[0], [2], [3], [1]]
        assert micro_batches(rollout, [0, 1, 2, 3], 1, 36) == [[0], [2], [3], [1]]
        assert micro_batches(rollout, [1, 3], 2, 36) == [[3, 1]]
        assert micro_batches(rollout, [0, 1, 2, 3], None, None, at_least=2) == [[0, 2], [3, 1]]
        assert micro_batches(rollout, [0, 1, 2, 3], 3, None, at_least=3) == [[0], [2, 3], [1]]

    def test_a_model_that_runs_a_prompt_with_every_completion_fits_fewer(self):
        rollout = rollout_of_lengths([5, 5], [[3, 3], [3, 3]])
        assert micro_batches(rollout, [0, 1], None, 22) == [[0, 1]]  # 2 * (5 + 2 * 3)
        assert micro_batches(rollout, [0, 1], None, 22, shares_prefix=False) == [[0], [1]]  # 2 * (2 * 5 + 2 * 3)
        assert micro_batches(rollout, [0, 1], None, 32, shares_prefix=False) == [[0, 1]]

    def test_a_group_beyond_the_limit_goes_alone(self):
        rollout = rollout_of_lengths([3, 3, 3], [[9, 9], [1, 1], [9, 9]])
        assert micro_batches(rollout, [0, 1, 2], None, 1) == [[0], [2], [1]]

    def test_more_parts_than_prompts_are_one_a_prompt(self):
        rollout = rollout_of_lengths([1, 1, 1], [[3], [1], [2]])
        assert sorted(micro_batches(rollout, [0, 1, 2], None, None, at_least=5)) == [[0], [1], [2]]
