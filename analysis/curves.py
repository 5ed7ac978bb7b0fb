"""One metric of one run as a curve over steps: reading off, crossing a target, area."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from analysis.tables import rows_where
from grpovi_lightning import metric_keys

FINAL_EVALUATIONS = 3


@dataclass(frozen=True)
class Curve:
    """Values over strictly rising steps, linear in between.

    Attributes:
        steps: [N], policy updates done before the measurement.
        values: [N], finite.
    """

    steps: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        assert self.steps.shape == self.values.shape and self.steps.ndim == 1 and self.steps.size, "one value a step"
        assert (np.diff(self.steps) > 0).all(), "steps must rise strictly"

    @property
    def first(self) -> float:
        """Value of the first measurement: the initial policy's, where it was measured at step 0."""
        return float(self.values[0])

    @property
    def last(self) -> float:
        return float(self.values[-1])

    @property
    def final(self) -> float:
        """Mean of the last `FINAL_EVALUATIONS` measurements, or fewer: the first one counts only if it is alone."""
        return float(self.values[-max(1, min(FINAL_EVALUATIONS, self.values.size - 1)) :].mean())

    def at(self, step: float) -> float:
        """Return the value at `step`, interpolated; NaN outside the measured range.

        >>> Curve(np.array([0.0, 10.0]), np.array([1.0, 2.0])).at(4)
        1.4
        """
        return float(np.interp(step, self.steps, self.values, left=np.nan, right=np.nan))

    def first_crossing(self, target: float) -> float:
        """Return the first step at which the curve is at or above `target`, interpolated; +inf where it never is.

        >>> curve = Curve(np.array([0.0, 10.0, 20.0]), np.array([1.0, 2.0, 1.5]))
        >>> curve.first_crossing(1.5), curve.first_crossing(3)
        (5.0, inf)
        """
        above = np.flatnonzero(self.values >= target)
        if not above.size:
            return float("inf")
        i = int(above[0])
        if i == 0:
            return float(self.steps[0])
        share = (target - self.values[i - 1]) / (self.values[i] - self.values[i - 1])
        return float(self.steps[i - 1] + share * (self.steps[i] - self.steps[i - 1]))

    def mean_over(self, first: float, last: float) -> float:
        """Return the mean height of the curve from `first` to `last`: its trapezoid area divided by the span.

        NaN where the span is empty or not covered.

        >>> Curve(np.array([0.0, 10.0, 20.0]), np.array([1.0, 2.0, 2.0])).mean_over(0, 20)
        1.75
        """
        if not (self.steps[0] <= first < last <= self.steps[-1]):
            return float("nan")
        inside = (self.steps > first) & (self.steps < last)
        steps = np.concatenate([[first], self.steps[inside], [last]])
        values = np.concatenate([[self.at(first)], self.values[inside], [self.at(last)]])
        return float(trapezoid(values, x=steps) / (last - first))

    def smoothed(self) -> "Curve":
        """Return the running mean over a tenth of the values: up to size // 20 on each side, fewer at the ends."""
        half = self.values.size // 20
        windows = [self.values[max(0, i - half) : i + half + 1] for i in range(self.values.size)]
        return Curve(self.steps, np.array([window.mean() for window in windows]))

    def thinned(self, n: int) -> "Curve":
        """Return at most `n` points: each the mean of neighbouring steps and of their values, of equally many each.

        >>> Curve(np.arange(4.0), np.array([1.0, 2.0, 5.0, 6.0])).thinned(2)
        Curve(steps=array([0.5, 2.5]), values=array([1.5, 5.5]))
        """
        if self.values.size <= n:
            return self
        starts = np.linspace(0, self.values.size, n, endpoint=False).astype(np.int64)
        counts = np.diff([*starts, self.values.size])
        return Curve(np.add.reduceat(self.steps, starts) / counts, np.add.reduceat(self.values, starts) / counts)


Curves = Mapping[str, Mapping[int, Curve]]
"""arm -> seed -> curve"""


def beside(metric: str, key: str) -> str:
    """Return the tag of `key` as it is measured where `metric` is: on the same held-out set, or in training.

    >>> beside("eval/reward", "kl"), beside("eval/hard/reward", "kl"), beside("reward", "kl")
    ('eval/kl', 'eval/hard/kl', 'kl')
    """
    if not metric.startswith(metric_keys.EVAL_PREFIX):
        return key
    return metric_keys.held_out(metric_keys.of_set(metric_keys.set_in(metric), key))


def curves_of(runs: pd.DataFrame, metric: str) -> dict[str, dict[int, Curve]]:
    """Return the curves of `metric`: arm -> seed -> curve. Values that are not finite are left out.

    Args:
        runs: As from `analysis.load_runs`, at most one run an arm and seed.
        metric: A tag.

    Returns:
        Arms and seeds in sorted order; only those that have a finite value.
    """
    wanted = (runs["metric"] == metric) & np.isfinite(runs["value"]) & runs["seed"].notna()
    rows = rows_where(runs, wanted).sort_values(["arm", "seed", "step"])
    curves: dict[str, dict[int, Curve]] = {}
    arms, seeds = rows["arm"].to_numpy(dtype=object), rows["seed"].to_numpy(dtype=np.int64)
    steps, values = (rows[name].to_numpy(dtype=np.float64) for name in ("step", "value"))
    starts = np.flatnonzero((arms[1:] != arms[:-1]) | (seeds[1:] != seeds[:-1])) + 1
    for first, last in itertools.pairwise([0, *starts.tolist(), len(rows)]):
        if first < last:
            curves.setdefault(str(arms[first]), {})[int(seeds[first])] = Curve(steps[first:last], values[first:last])
    return curves


def common_span(curves: Iterable[Curve]) -> tuple[float, float]:
    """Return the step range that all `curves` cover: (first, last). Empty (first >= last) where there is none."""
    ranges = [(curve.steps[0], curve.steps[-1]) for curve in curves]
    if not ranges:
        return float("nan"), float("nan")
    return float(max(first for first, _ in ranges)), float(min(last for _, last in ranges))


def thinned(curves: Curves, n: int) -> dict[str, dict[int, Curve]]:
    """Return every curve with at most `n` points, as `Curve.thinned` makes them."""
    return {arm: {seed: curve.thinned(n) for seed, curve in seeds.items()} for arm, seeds in curves.items()}
