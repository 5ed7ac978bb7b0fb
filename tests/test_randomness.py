import itertools

import pytest
import torch
from scipy import stats

from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import HELD_OUT_STEP, resolve_seed, sampling_uniforms, step_indices


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
