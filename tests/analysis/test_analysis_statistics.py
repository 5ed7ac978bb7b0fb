import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics import (
    Bootstrap,
    estimate_mean,
    estimate_median,
    estimate_ratio,
    mean,
    median,
    seeds_needed,
    t_interval,
)

SAMPLES = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=8)


@pytest.mark.parametrize("n", [7, 12, 30])
@pytest.mark.parametrize(("ours", "theirs"), [(mean, np.mean), (median, np.median)])
def test_intervals_agree_with_scipys_percentile_bootstrap(n: int, ours, theirs):
    values = np.random.default_rng(n).normal(size=n)
    low, high = Bootstrap().interval(values.tolist(), ours)
    reference = stats.bootstrap(
        (values,), theirs, n_resamples=200_000, method="percentile", random_state=np.random.default_rng(1), batch=10_000
    ).confidence_interval
    tolerance = 0.03 if ours is mean else 0.12  # the bootstrap distribution of a median is coarse
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=tolerance)


def test_with_five_seeds_all_3125_resamples_give_the_exact_quantiles():
    values = [0.3, -1.2, 0.8, 2.5, 0.1]
    means = sorted(
        (a + b + c + d + e) / 5 for a in values for b in values for c in values for d in values for e in values
    )
    assert len(means) == 3125
    # 2.5 % of 3125 is 78.1: the 79th from below has at least that much at or below it.
    assert Bootstrap().interval(values, mean) == pytest.approx((means[78], means[-79]))


def test_with_three_seeds_the_interval_of_a_mean_is_their_range():
    assert Bootstrap().interval([1.0, 4.0, 2.0], mean) == (1.0, 4.0)


def test_one_seed_has_no_interval():
    estimate = estimate_mean([0.7], Bootstrap())
    assert estimate.point == 0.7
    assert all(math.isnan(end) for end in (estimate.low, estimate.high, estimate.t_low, estimate.t_high))


def test_the_median_counts_what_was_not_reached_as_infinite():
    estimate = estimate_median([40.0, math.inf, 60.0], Bootstrap())
    assert (estimate.point, estimate.low, estimate.high) == (60.0, 40.0, math.inf)
    assert estimate_median([40.0, math.inf, math.inf], Bootstrap()).point == math.inf


@settings(deadline=None)
@given(SAMPLES)
def test_the_interval_contains_the_mean_and_lies_within_the_seeds(values: list[float]):
    low, high = Bootstrap().interval(values, mean)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= low <= np.mean(values) + slack
    assert np.mean(values) - slack <= high <= max(values) + slack


@settings(deadline=None)
@given(SAMPLES)
def test_the_interval_of_the_negatives_is_the_mirror_image(values: list[float]):
    low, high = Bootstrap().interval(values, mean)
    mirrored = Bootstrap().interval([-value for value in values], mean)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=7))
def test_the_geometric_mean_of_reciprocals_is_the_reciprocal(ratios: list[float]):
    one = estimate_ratio(ratios, Bootstrap())
    other = estimate_ratio([1 / ratio for ratio in ratios], Bootstrap())
    assert other.point == pytest.approx(1 / one.point)
    assert (other.low, other.high) == pytest.approx((1 / one.high, 1 / one.low))
    assert one.point == pytest.approx(stats.gmean(ratios))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=9).tolist()
    assert Bootstrap(seed=3).interval(values, mean) == Bootstrap(seed=3).interval(values, mean)
    assert Bootstrap(seed=3).interval(values, mean) != Bootstrap(seed=4).interval(values, mean)


def test_the_t_interval_agrees_with_scipys():
    values = [0.11, 0.19, 0.05, 0.14]
    reference = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((reference.low, reference.high))


def test_a_difference_needs_both_intervals_to_exclude_it():
    few = estimate_mean([0.1, 0.5, 0.2], Bootstrap())  # all above 0, yet t reaches below
    assert few.low > 0 > few.t_low
    assert not few.excludes(0.0)
    assert estimate_mean([0.30, 0.31, 0.32], Bootstrap()).excludes(0.0)


def test_seeds_needed_is_where_the_t_interval_first_excludes_zero():
    values = [0.1, 0.5, -0.2]
    n = seeds_needed(values)
    assert n is not None
    ratio = np.std(values, ddof=1) / np.mean(values)
    assert stats.t.ppf(0.975, n - 1) * ratio / math.sqrt(n) < 1 <= stats.t.ppf(0.975, n - 2) * ratio / math.sqrt(n - 1)


@pytest.mark.parametrize("values", [[0.3], [1.0, -1.0], [1.0, -0.9999]])
def test_seeds_needed_is_unknown_without_spread_or_difference(values: list[float]):
    assert seeds_needed(values) is None


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="without NaN"):
        Bootstrap().interval([1.0, math.nan], mean)
    with pytest.raises(ValueError, match="at least 100"):
        Bootstrap(n_resamples=3)
