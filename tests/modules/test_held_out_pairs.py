import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.modules.held_out_pairs import HeldOutPairs, PairScores, calibration

scores = st.lists(st.tuples(*[st.floats(-6, 6, width=32)] * 2), min_size=1, max_size=40)


def expected_calibration_error(pairs):
    """Pair by pair, as arXiv 1706.04599 has it, over ten bins from 1/2 to 1."""
    bins = [[] for _ in range(10)]
    for chosen, rejected in np.float32(pairs):
        difference = float(np.float32(chosen - rejected))
        confidence = 1 / (1 + np.exp(-abs(difference)))
        right = 0.5 if difference == 0 else float(difference > 0)
        bins[min(int((confidence - 0.5) * 20), 9)].append((confidence, right))
    filled = [np.array(rows) for rows in bins if rows]
    return sum(len(rows) / len(pairs) * abs(rows[:, 1].mean() - rows[:, 0].mean()) for rows in filled)


@given(scores)
def test_the_calibration_error_is_that_of_ten_bins_of_the_predicted_probability(pairs):
    found = calibration(*torch.tensor(pairs).T)
    assert int(found.counts.sum()) == len(pairs)
    assert found.error == pytest.approx(expected_calibration_error(pairs), abs=1e-6)


def test_a_model_that_guesses_and_is_right_half_the_time_is_calibrated_and_one_that_is_sure_is_not():
    even = torch.tensor([1.0, 0.0] * 50) * 1e-3
    assert calibration(even, even.flip(0)).error < 0.001
    assert calibration(even * 1e4, even.flip(0) * 1e4).error == pytest.approx(0.5, abs=0.001)


def test_the_correlation_with_length_is_numpys():
    parts = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    pairs = PairScores(parts[0], parts[1], parts[2] + parts[0], parts[3] + parts[1])
    both = np.corrcoef(np.r_[parts[0], parts[1]], np.r_[parts[2] + parts[0], parts[3] + parts[1]])
    assert pairs.length_correlation == pytest.approx(both[0, 1], rel=1e-6)


def test_the_correlation_is_nan_where_nothing_differs():
    ones = torch.ones(3)
    assert np.isnan(PairScores(ones, ones, torch.arange(3), torch.arange(3)).length_correlation)


def test_accuracy_is_reported_on_each_named_subset():
    held_out = HeldOutPairs()
    held_out.update(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]), subsets=["easy", "hard", "hard"])
    held_out.update(torch.tensor([3.0]), torch.tensor([0.0]), subsets=["hard"])
    found = held_out.compute()
    assert found["pair_accuracy/easy"] == 1.0
    assert found["pair_accuracy/hard"] == pytest.approx((0.0 + 0.5 + 1.0) / 3)
    assert found["pair_accuracy"] == pytest.approx(2.5 / 4)
    held_out.reset()
    held_out.update(torch.tensor([3.0]), torch.tensor([0.0]))
    assert not [name for name in held_out.compute() if name.startswith("pair_accuracy/")]
