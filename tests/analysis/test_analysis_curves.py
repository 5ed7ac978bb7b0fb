import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_runs import frame

from analysis.curves import Curve, common_span, curves_of


def curve(points: dict[float, float]) -> Curve:
    return Curve(np.array(list(points), dtype=float), np.array(list(points.values()), dtype=float))


def test_the_crossing_is_interpolated_between_evaluations():
    assert curve({0: 0.0, 10: 0.2, 20: 0.6}).first_crossing(0.3) == pytest.approx(12.5)


def test_the_first_crossing_counts_even_if_the_curve_falls_again():
    assert curve({0: 0.0, 10: 1.0, 20: 0.0, 30: 1.0}).first_crossing(0.5) == pytest.approx(5.0)


def test_a_target_that_is_touched_exactly_is_reached_there():
    assert curve({0: 0.0, 10: 0.5, 20: 0.5}).first_crossing(0.5) == 10.0


def test_a_target_that_is_not_reached_is_infinite_and_one_below_the_start_is_at_the_start():
    assert curve({0: 0.2, 10: 0.4}).first_crossing(0.5) == math.inf
    assert curve({5: 0.2, 10: 0.4}).first_crossing(0.1) == 5.0


def test_the_area_is_the_trapezoid_over_the_span_in_units_of_the_values():
    points = curve({0: 0.0, 10: 1.0, 20: 1.0})
    assert points.mean_over(0, 20) == pytest.approx(0.75)
    assert points.mean_over(5, 15) == pytest.approx((0.75 * 5 + 1.0 * 5) / 10)


def test_an_area_outside_the_measured_range_is_unknown():
    assert math.isnan(curve({0: 0.0, 10: 1.0}).mean_over(0, 11))
    assert math.isnan(curve({0: 0.0, 10: 1.0}).mean_over(5, 5))


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=9), st.integers(1, 199), st.integers(1, 199))
def test_the_area_over_any_range_agrees_with_a_dense_grid(values: list[float], a: int, b: int):
    points = Curve(np.arange(len(values)) * 10.0, np.array(values))
    first, last = sorted((a % points.steps[-1], b % points.steps[-1]))
    if first == last:
        last += 0.5
    grid = np.linspace(first, last, 20_001)
    dense = np.interp(grid, points.steps, points.values)
    assert points.mean_over(first, last) == pytest.approx(dense.mean(), abs=2e-3)


@pytest.mark.parametrize(("values", "final"), [([0, 1, 2, 3, 7], 4.0), ([0, 1, 5], 3.0), ([0, 5], 5.0), ([4], 4.0)])
def test_the_final_value_is_the_mean_of_the_last_three_without_the_first(values: list[float], final: float):
    assert Curve(np.arange(len(values)) * 1.0, np.array(values, dtype=float)).final == pytest.approx(final)


def test_curves_come_sorted_by_step_whatever_the_order_of_the_rows():
    runs = frame({"a": {1: {20: 2.0, 0: 0.0, 10: 1.0}}}).sample(frac=1, random_state=1)
    assert curves_of(runs, "eval/rewards/gold/mean")["a"][1].values.tolist() == [0.0, 1.0, 2.0]


def test_the_common_span_is_what_all_curves_cover():
    assert common_span([curve({0: 0.0, 100: 1.0}), curve({10: 0.0, 60: 1.0})]) == (10.0, 60.0)
    assert all(math.isnan(end) for end in common_span([]))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=90))
def test_a_smoothed_curve_is_the_mean_of_a_tenth_of_the_values_around_each(values: list[float]):
    curve = Curve(np.arange(len(values), dtype=float), np.array(values)).smoothed()
    half = len(values) // 20
    for i, value in enumerate(curve.values):
        near = [values[j] for j in range(len(values)) if abs(j - i) <= half]
        assert value == pytest.approx(sum(near) / len(near), abs=1e-9)
