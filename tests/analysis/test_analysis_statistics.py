import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics import (
    bootstrap_mean,
    detectable,
    estimate_mean,
    estimate_median,
    estimate_ratio,
    holm,
    power_of,
    seeds_needed,
)

SAMPLES = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=8)
P_VALUES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=7)


def test_interval_and_p_value_of_a_mean_agree_with_scipys_t_test():
    values = [0.11, 0.19, -0.05, 0.14]
    reference, found = stats.ttest_1samp(values, 0.0), estimate_mean(values)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert (found.point, found.p) == pytest.approx((0.0975, reference.pvalue))
    assert found.excludes(0.0) == (reference.pvalue < 0.05) and found.excludes(-0.2)


def test_interval_and_p_value_of_a_ratio_are_those_of_its_logarithm():
    ratios = [1.4, 0.9, 2.0, 1.7]
    reference, found = stats.ttest_1samp(np.log(ratios), 0.0), estimate_ratio(ratios)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(reference.confidence_interval(0.95))))
    assert (found.point, found.p) == pytest.approx((stats.gmean(ratios), reference.pvalue))


def test_one_seed_has_a_number_and_nothing_else_and_none_has_nothing():
    found = estimate_mean([0.7])
    assert found.point == 0.7 and all(math.isnan(number) for number in (found.low, found.high, found.p))
    assert not found.excludes(0.0)
    assert all(math.isnan(make([]).point) for make in (estimate_mean, estimate_ratio, estimate_median))


def test_without_spread_a_difference_is_certain_and_no_difference_is_none():
    assert (estimate_mean([2.0, 2.0]).p, estimate_mean([0.0, 0.0]).p, estimate_ratio([1.0, 1.0]).p) == (0.0, 1.0, 1.0)


@settings(deadline=None)
@given(SAMPLES)
def test_of_the_negatives_interval_is_the_mirror_image_and_p_the_same(values: list[float]):
    one, other = estimate_mean(values), estimate_mean([-value for value in values])
    assert (other.low, other.high, other.p) == (-one.high, -one.low, one.p)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=7))
def test_the_geometric_mean_of_reciprocals_is_the_reciprocal(ratios: list[float]):
    one, other = estimate_ratio(ratios), estimate_ratio([1 / ratio for ratio in ratios])
    assert (other.point, other.low, other.high) == pytest.approx((1 / one.point, 1 / one.high, 1 / one.low))
    assert other.p == pytest.approx(one.p)


def test_the_median_counts_what_was_not_reached_as_infinite():
    assert estimate_median([40.0, math.inf, 60.0]).point == 60.0
    assert estimate_median([40.0, math.inf, math.inf]).point == math.inf
    found = estimate_median([4.0, math.inf, 2.0, 1.0, 3.0, 5.0])
    assert (found.point, found.low, found.high) == (3.5, 1.0, math.inf)


@pytest.mark.parametrize("n", range(1, 40))
def test_the_interval_of_the_median_is_the_narrowest_that_keeps_95_percent(n: int):
    found = estimate_median([float(value) for value in range(1, n + 1)])
    # The k-th from below and from above miss the median where fewer than k of n fair coins show heads, or tails.
    missed = [2 * sum(math.comb(n, heads) for heads in range(k)) / 2**n for k in range(n // 2 + 2)]
    k = max(k for k in range(n // 2 + 1) if missed[k] <= 0.05)
    assert k == 0 if n < 6 else k > 0
    if k:
        assert (found.low, found.high) == (k, n + 1 - k)
    else:
        assert math.isnan(found.low) and math.isnan(found.high)


@settings(deadline=None)
@given(P_VALUES)
def test_holms_correction_is_the_largest_bonferroni_correction_of_the_sets_that_hold_a_claim(p_values: list[float]):
    # The closed test: a claim stands at level a where every set of hypotheses with it is rejected by Bonferroni at a.
    every = range(len(p_values))
    for i, corrected in enumerate(holm(p_values)):
        sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(every, size) if i in s]
        assert corrected == pytest.approx(max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets))


def test_what_was_not_tested_is_not_corrected_for():
    assert holm([0.02, math.nan, 0.04]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "n", "level"), [(0.0, 5, 0.05), (0.8, 5, 0.05), (2.5, 3, 0.025), (0.5, 20, 0.01)])
def test_power_is_how_often_scipys_t_test_rejects(effect: float, n: int, level: float):
    samples = np.random.default_rng(0).standard_normal((20_000, n)) + effect
    rejected = np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue <= level)
    assert power_of(effect, n, level) == power_of(-effect, n, level) == pytest.approx(rejected, abs=0.01)


@pytest.mark.parametrize("level", [0.05, 0.05 / 12])
@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_the_detectable_effect_needs_the_seeds_that_detect_it(n: int, level: float):
    effect = detectable(n, level)
    assert power_of(effect, n, level) == pytest.approx(0.8)
    assert (seeds_needed(1.001 * effect, level), seeds_needed(0.999 * effect, level)) == (n, n + 1)


def test_an_effect_that_a_thousand_seeds_do_not_see_has_no_number_of_seeds():
    assert seeds_needed(0.0) is None and seeds_needed(0.08) is None
    assert seeds_needed(0.1) == pytest.approx(787, abs=1)  # (1.96 + 0.84)^2 / 0.1^2, and a little


def test_the_interval_over_prompts_is_efrons_computed_by_hand():
    values = np.random.default_rng(0).exponential(size=40)
    draws = np.random.default_rng(1).choice(values, (100_000, 40)).mean(axis=1)
    bias = stats.norm.ppf(np.mean(draws < values.mean()))
    left_out = values.mean() - np.array([np.delete(values, i).mean() for i in range(40)])
    skew = -(left_out**3).sum() / (6 * ((left_out**2).sum()) ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    ends = np.quantile(draws, stats.norm.cdf(bias + z / (1 - abs(skew) * z)))
    assert bootstrap_mean(values.tolist()) == pytest.approx(tuple(ends), abs=0.02)


def test_the_interval_over_prompts_depends_on_the_values_alone():
    values = np.random.default_rng(0).normal(size=9).tolist()
    assert bootstrap_mean(values) == bootstrap_mean(values[::-1])
    assert bootstrap_mean([0.5, 0.5]) == (0.5, 0.5)
    assert all(math.isnan(end) for end in bootstrap_mean([1.0]))


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="expected finite values"):
        bootstrap_mean([1.0, math.nan])
