import base64

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import GOLD, frame, line

from analysis import ReportError, chart, metric_figure
from analysis.chart import chart_of
from analysis.curves import Curve
from analysis.style import arm_styles

STYLES = arm_styles(["grpo", "grpovi"], {"grpovi": "grpo"}, {})


def numbers(text: str) -> list[float]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").tolist()


def curves(data, metric: str) -> dict[tuple[str, int | None], tuple[list[float], list[float]]]:
    names = [arm["name"] for arm in data["arms"]]
    return {
        (names[arm], seed): (numbers(data["grids"][grid]), numbers(values))
        for arm, seed, grid, values in data["metrics"][metric]
    }


def test_the_chart_holds_every_metric_with_the_seeds_and_their_mean():
    gold = frame({"grpo": {1: line(0, 1, (0, 10)), 2: line(0, 3, (0, 10))}, "grpovi": {1: {0: 0.5, 10: 0.25}}})
    entropy = frame({"grpo": {1: {0: 2.0, 5: 1.0, 10: float("nan")}}}, "entropy")
    once = frame({"grpo": {1: {0: 2.0}}}, "eval/once")
    held_out = frame({"grpo": {1: {0: 2.0, 10: 1.0}}}, "eval/kl")
    found = chart_of(pd.concat([entropy, once, gold, held_out]), GOLD, STYLES)
    assert found is not None and found.points is None and found.left_out == []
    assert found.groups == {"compared": [GOLD], "held out": ["eval/kl"], "training": ["entropy"]}
    assert curves(found.data, GOLD) == {
        ("grpo", None): ([0, 10], [0, 2]),
        ("grpo", 1): ([0, 10], [0, 1]),
        ("grpo", 2): ([0, 10], [0, 3]),
        ("grpovi", 1): ([0, 10], [0.5, 0.25]),
    }
    assert curves(found.data, "entropy") == {("grpo", 1): ([0, 5], [2, 1])}, "what is not finite is left out"
    assert len(found.data["grids"]) == 2, "equal steps stand once"


def test_there_is_no_chart_where_no_run_has_a_curve():
    assert chart_of(frame({"grpo": {1: {0: 1.0}}}), GOLD, STYLES) is None
    assert chart_of(frame({}), GOLD, STYLES) is None


def test_long_curves_are_thinned_to_means_of_neighbours_and_what_has_no_room_is_named(monkeypatch):
    steps = range(1000)
    names = [GOLD, "eval/kl", *(f"metric_{i}" for i in range(8))]
    runs = pd.concat([frame({"grpo": {1: line(0, 999, steps), 2: line(0, 999, steps)}}, name) for name in names])
    monkeypatch.setattr(chart, "DATA_BYTES", 20_000)
    found = chart_of(runs, GOLD, STYLES)
    assert found is not None and found.points == 100
    at, values = curves(found.data, GOLD)["grpo", 1]
    assert at == values == pytest.approx([10 * i + 4.5 for i in range(100)])
    monkeypatch.setattr(chart, "DATA_BYTES", 2000)
    found = chart_of(runs, GOLD, STYLES)
    assert found is not None and found.points == 50
    assert found.groups == {"compared": [GOLD], "held out": ["eval/kl"]} and found.left_out == names[2:]


def test_a_thinned_curve_keeps_the_area_of_equal_steps_and_a_short_one_is_kept_as_it_is():
    curve = Curve(np.arange(10.0), np.random.default_rng(0).normal(size=10))
    thin = curve.thinned(4)
    assert thin.steps.size == 4
    groups = [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert thin.values.tolist() == pytest.approx([curve.values[group].mean() for group in groups])
    assert thin.steps.tolist() == pytest.approx([np.mean(group) for group in groups])
    assert curve.thinned(10) is curve


def test_a_figure_of_any_metric_shows_the_mean_and_the_seeds():
    runs = frame({"grpo": {1: line(0, 1, (0, 10)), 2: line(0, 3, (0, 10))}}, "entropy")
    (axes,) = metric_figure(runs, "entropy").axes
    drawn = [list(each.get_ydata()) for each in axes.get_lines()]
    assert drawn == [[0, 1], [0, 3], [0, 2]] and axes.get_ylabel() == "entropy"
    with pytest.raises(ReportError, match="no run has a finite value of 'entropie'; logged are entropy"):
        metric_figure(runs, "entropie")
