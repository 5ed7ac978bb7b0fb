"""What pairing by seed did to the variance of a difference."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic_runs import frame, ramp

from analysis import efficiency_table
from analysis.pairing import pairing_of

VALUES = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=3, max_size=9)


def test_correlation_and_its_interval_agree_with_scipys():
    arm, baseline = np.random.default_rng(0).multivariate_normal([0, 1], [[1, 0.6], [0.6, 2]], size=12).T
    found, reference = pairing_of(arm.tolist(), baseline.tolist()), stats.pearsonr(arm, baseline)
    assert found is not None and found.correlation == pytest.approx(reference.statistic)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


@settings(deadline=None)
@given(VALUES)
def test_the_paired_variance_is_the_unpaired_one_less_twice_the_covariance(pairs: list[tuple[float, float]]):
    arm, baseline = (list(values) for values in zip(*pairs, strict=True))
    found = pairing_of(arm, baseline)
    if found is not None:
        assert found.paired == pytest.approx(found.unpaired - 2 * np.cov(arm, baseline)[0, 1], abs=1e-9)


def test_seeds_that_the_arms_share_shrink_the_variance_and_independent_ones_do_not():
    rng = np.random.default_rng(1)
    shared, ours, theirs = rng.standard_normal((3, 4_000))
    together = pairing_of((3 * shared + ours).tolist(), (3 * shared + theirs).tolist())
    apart = pairing_of(ours.tolist(), theirs.tolist())
    assert together is not None and apart is not None
    assert together.ratio == pytest.approx(0.1, rel=0.05) and apart.ratio == pytest.approx(1.0, abs=0.05)


def test_what_pairing_bought_is_not_known_from_two_seeds_or_without_spread():
    assert pairing_of([1.0, 2.0], [1.0, 3.0]) is None and pairing_of([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    three = pairing_of([1.0, 2.0, 4.0], [1.0, 3.0, 4.0])
    assert three is not None and math.isnan(three.low) and math.isnan(three.high)


def test_the_table_has_the_ratio_of_the_areas_of_the_paired_seeds():
    ends = {"grpo": (50, 40, 80, 60), "grpovi": (90, 70, 80, 60)}
    runs = frame({arm: {seed: ramp(end) for seed, end in enumerate(of)} for arm, of in ends.items()})
    table = efficiency_table(runs, baselines={"grpovi": "grpo"}).set_index("arm")
    areas = {arm: 1 - np.array(of) / 200 for arm, of in ends.items()}
    expected = (areas["grpovi"] - areas["grpo"]).var() / (areas["grpovi"].var() + areas["grpo"].var())
    assert table.loc["grpovi", "variance_ratio"] == pytest.approx(expected)
    assert math.isnan(table.loc["grpo", "variance_ratio"])
