import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import (
    HELD_OUT_STEP,
    dither_uniforms,
    minibatch_order,
    resolve_seed,
    sampling_uniforms,
    spare_indices,
    step_indices,
)


def stream(seed=1, step=2, prompt=3, member=0, length=8):
    return sampling_uniforms(seed, step, torch.tensor([prompt]), member + 1, length)[member].tolist()


def test_the_same_coordinates_give_the_same_numbers_to_the_bit():
    assert stream() == stream()


@pytest.mark.parametrize("length", [1, 5, 200])
def test_a_longer_stream_only_adds_to_its_end(length):
    assert stream(length=length) == stream(length=300)[:length]


def test_every_coordinate_changes_the_whole_stream():
    coordinates = [(0, 1, 2), (0, 1, 256, HELD_OUT_STEP), (0, 1, 256, 2**32), (0, 1)]
    streams = [stream(*where) for where in itertools.product(*coordinates)]
    numbers = [number for row in streams for number in row]
    assert len(set(numbers)) == len(numbers)


def test_a_completion_depends_on_neither_the_other_prompts_nor_their_order_nor_the_group_size():
    together = sampling_uniforms(1, 2, torch.tensor([7, 3, 5]), 4, 6).unflatten(0, (3, 4))
    alone = sampling_uniforms(1, 2, torch.tensor([5]), 2, 6)
    assert torch.equal(together[2, :2], alone)


def test_the_numbers_are_uniform_and_independent():
    numbers = sampling_uniforms(0, 0, torch.arange(200), 4, 50)
    assert numbers.shape == (800, 50) and numbers.dtype == torch.float64
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(numbers[:, 0].numpy(), "uniform").pvalue > 0.01
    for other in (numbers[:, 1], numbers[:, 0].roll(1)):
        assert stats.pearsonr(numbers[:, 0].numpy(), other.numpy()).pvalue > 0.01


def test_noise_on_rewards_has_numbers_of_its_own_for_every_coordinate():
    found = {
        where: dither_uniforms(*where, torch.tensor([3, 9]), 5)
        for where in itertools.product((0, 1), (0, 1, 256, 2**32))
    }
    assert all(numbers.shape == (2, 5) and numbers.dtype == torch.float64 for numbers in found.values())
    assert torch.equal(found[1, 256][1:, :2], dither_uniforms(1, 256, torch.tensor([9]), 2))
    sampling = sampling_uniforms(1, 0, torch.tensor([3, 9]), 5, 7)
    everything = torch.cat([*(numbers.flatten() for numbers in found.values()), sampling.flatten()])
    assert len(everything.unique()) == everything.numel() and everything.min() >= 0 and everything.max() < 1


@pytest.mark.parametrize(("n_rows", "rows_per_step"), [(12, 3), (13, 4), (5, 5), (7, 1)])
def test_no_row_comes_twice_in_a_pass_and_passes_differ(n_rows, rows_per_step):
    steps = n_rows // rows_per_step
    passes = []
    for which in range(3):
        rows = [step_indices(4, which * steps + step, n_rows, rows_per_step) for step in range(steps)]
        assert all(len(row) == rows_per_step for row in rows)
        flat = [index for row in rows for index in row]
        assert len(set(flat)) == steps * rows_per_step and set(flat) <= set(range(n_rows))
        passes.append(flat)
    assert passes[0] != passes[1] != passes[2]


def test_over_the_passes_left_over_rows_are_not_always_the_same():
    seen = {index for step in range(10) for index in step_indices(0, step, 5, 4)}
    assert seen == set(range(5))


def test_the_rows_of_a_step_are_a_pure_function_of_seed_and_step():
    assert step_indices(3, 17, 50, 5) == step_indices(3, 17, 50, 5) != step_indices(4, 17, 50, 5)


def test_too_few_rows_for_one_step_is_an_error_with_both_numbers():
    with pytest.raises(UserError, match="too few rows: got 7, expected at least the 8 of one step"):
        step_indices(0, 0, 7, 8)


def test_the_seed_is_the_given_one_else_the_runs(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    assert resolve_seed(5) == 5 and resolve_seed(0) == 0 and resolve_seed(None) == 11


def test_no_seed_at_all_is_an_error_that_says_what_to_add(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    with pytest.raises(UserError, match=r"no seed: .*seed_everything"):
        resolve_seed(None)


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 99), st.integers(1, 40))
def test_a_deal_to_minibatches_holds_every_prompt_once_and_is_a_pure_function(seed, step, iteration, n_prompts):
    order = minibatch_order(seed, step, iteration, n_prompts)
    np.random.seed(0)
    torch.manual_seed(0)
    assert sorted(order) == list(range(n_prompts))
    assert minibatch_order(seed, step, iteration, n_prompts) == order and all(type(p) is int for p in order)


def test_every_coordinate_deals_anew():
    coordinates = [(0, 1, 2), (0, 1, 256, 2**32), (0, 1, 2)]
    deals = [tuple(minibatch_order(*where, 30)) for where in itertools.product(*coordinates)]
    assert len(set(deals)) == len(deals)


def test_every_deal_is_as_likely_as_any_other():
    counts = Counter(tuple(minibatch_order(1, step, step % 3, 3)) for step in range(3000))
    assert len(counts) == 6 and stats.chisquare(list(counts.values())).pvalue > 0.01


@st.composite
def steps_with_spare_rows(draw):
    """(seed, step, n_rows, rows of the step, spare rows of the step)."""
    n_rows = draw(st.integers(1, 60))
    rows_per_step = draw(st.integers(1, n_rows))
    seed, step = draw(st.integers(0, 2**33)), draw(st.integers(0, 2**33))
    taken = step_indices(seed, step, n_rows, rows_per_step)
    return seed, step, n_rows, taken, draw(st.integers(0, n_rows - rows_per_step))


@given(steps_with_spare_rows())
def test_spare_rows_differ_from_each_other_and_from_those_of_the_step(where):
    _, _, n_rows, taken, n_spare = where
    spare = spare_indices(*where)
    assert len(spare) == n_spare and len({*spare, *taken}) == n_spare + len(taken)
    assert {*spare, *taken} <= set(range(n_rows)) and all(type(row) is int for row in spare)


@given(steps_with_spare_rows(), st.randoms(use_true_random=False))
def test_spare_rows_are_a_pure_function_of_seed_and_step(where, shuffler):
    seed, step, n_rows, taken, n_spare = where
    spare = spare_indices(*where)
    np.random.seed(0)
    other = list(taken)
    shuffler.shuffle(other)
    assert spare_indices(seed, step, n_rows, other, n_spare) == spare and sorted(other) == sorted(taken)


def test_asking_for_spare_rows_leaves_the_rows_of_the_step_as_they_are():
    taken = step_indices(3, 4, 20, 5)
    spare_indices(3, 4, 20, taken, 6)
    assert taken == step_indices(3, 4, 20, 5)


@pytest.mark.parametrize(("seed", "step"), [(1, 1), (0, 2), (2**32, 1), (0, 2**32 + 1)])
def test_another_seed_or_step_has_other_spare_rows(seed, step):
    assert spare_indices(seed, step, 1000, [], 10) != spare_indices(0, 1, 1000, [], 10)


def test_all_rows_that_a_step_leaves_can_be_spare():
    assert sorted(spare_indices(5, 6, 200, list(range(0, 200, 2)), 100)) == list(range(1, 200, 2))
    assert spare_indices(5, 6, 4, [2, 0, 3, 1], 0) == []


def test_no_row_is_spare_more_often_than_others():
    taken = [0, 1]
    counts = Counter(row for step in range(2000) for row in spare_indices(1, step, 12, taken, 3))
    assert set(counts) == set(range(2, 12)) and stats.chisquare(list(counts.values())).pvalue > 0.01


def test_too_few_rows_for_the_spare_ones_is_an_error_with_all_three_numbers():
    with pytest.raises(UserError, match="too few rows: got 7, expected at least the 5 of one step and 3 spare ones"):
        spare_indices(0, 0, 7, [0, 1, 2, 3, 4], 3)
