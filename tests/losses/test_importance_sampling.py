import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import ImportanceSampling, TruncatedImportanceSampling


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20), st.floats(1, 50))
def test_each_token_counts_by_its_ratio_up_to_the_cap(log_ratios, cap):
    found = TruncatedImportanceSampling(cap)(torch.tensor([log_ratios], dtype=torch.float64))
    expected = [min(math.exp(value), cap) for value in log_ratios]
    assert found.shape == (1, len(log_ratios)) and found[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    log_ratio = torch.tensor([[0.5, 1.0, 1.999], [2.0, 2.001, 40.0]]).log()
    found = TruncatedImportanceSampling(2.0)(log_ratio)
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0, 1.999], [2.0, 2.0, 2.0]]))


def test_a_masked_token_counts_1_whatever_the_cap():
    for cap in (1.0, 2.0, 1e6):
        assert TruncatedImportanceSampling(cap)(torch.zeros(2, 3)).tolist() == [[1.0] * 3] * 2


def test_the_cap_is_2_unless_told_and_nothing_raises_a_small_ratio():
    found = TruncatedImportanceSampling()(torch.tensor([[5.0, -5.0, -200.0]]))
    assert found[0, 0] == 2 and found[0, 1] == pytest.approx(math.exp(-5)) and found[0, 2] == 0


def test_a_ratio_beyond_every_number_is_capped():
    assert TruncatedImportanceSampling(3.0)(torch.tensor([[1000.0, torch.inf, -torch.inf]])).tolist() == [[3, 3, 0]]


def test_a_ratio_that_is_no_number_stays_visible():
    assert TruncatedImportanceSampling()(torch.tensor([[torch.nan, 0.0]])).isnan().tolist() == [[True, False]]


def test_the_log_ratios_are_left_as_they_are():
    log_ratio = torch.tensor([[3.0, -1.0]])
    TruncatedImportanceSampling()(log_ratio)
    assert log_ratio.tolist() == [[3.0, -1.0]]


@pytest.mark.parametrize("cap", [0.999, 0.0, -2.0, float("inf"), float("-inf"), float("nan")])
def test_a_cap_that_is_none_is_refused_in_one_line(cap):
    expected = r"importance sampling cap: got .*, expected a finite number of at least 1"
    with pytest.raises(UserError, match=expected) as error:
        TruncatedImportanceSampling(cap)
    assert "\n" not in str(error.value)


def test_it_is_a_correction_as_the_module_takes_them():
    assert isinstance(TruncatedImportanceSampling(), ImportanceSampling)
    with pytest.raises(TypeError):
        ImportanceSampling()
