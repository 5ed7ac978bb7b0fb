"""Numbers over seeds with the one interval that verdicts use, Student's t; tests of several claims; power."""

import bisect
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import optimize, special, stats

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
"""Chance of a claim where there is no difference, over all claims of a report together."""
POWER = 0.8
MAX_SEEDS_NEEDED = 1000
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


@dataclass(frozen=True)
class Estimate:
    """A number over seeds with its interval, all in the unit of `values`.

    Attributes:
        point: The estimate; NaN where there is none, +inf for a median of values most of which are infinite.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end of it.
        values: What was averaged, one a seed.
        p: Two-sided p-value of no effect: of a mean of 0, of a ratio of 1. NaN where it is not defined.
        level: Chance that the interval misses, and up to which p speaks for an effect: 5 %, or the part of it that this
            look at the data may spend, so that over all planned looks it is 5 %.
    """

    point: float
    low: float
    high: float
    values: tuple[float, ...] = ()
    p: float = math.nan
    level: float = LEVEL

    def excludes(self, value: float) -> bool:
        """Tell whether the interval lies wholly on one side of `value`."""
        return self.low > value or self.high < value


NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan)


def estimate_mean(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the mean over seeds of finite values, with Student's t interval and test; `NO_ESTIMATE` for no values.

    Both assume that the mean is roughly normal, and know that few seeds leave the spread uncertain. One seed has none.

    >>> found = estimate_mean([1.0, 2.0, 3.0])
    >>> [round(number, 3) for number in (found.point, found.low, found.high, found.p)]
    [2.0, -0.484, 4.484, 0.074]
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        return NO_ESTIMATE
    point = float(data.mean())
    if data.size < 2:
        return Estimate(point, math.nan, math.nan, tuple(values), level=level)
    error = float(data.std(ddof=1) / math.sqrt(data.size))
    half = float(special.stdtrit(data.size - 1, 1 - level / 2)) * error
    # Without any spread the statistic is infinite, or, for a mean of 0, undefined: no effect at all.
    p = 2 * float(special.stdtr(data.size - 1, -abs(point) / error)) if error else float(point == 0)
    return Estimate(point, point - half, point + half, tuple(values), p, level)


def estimate_ratio(ratios: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the geometric mean over seeds of positive finite ratios; interval and test are of the logarithms.

    >>> round(estimate_ratio([0.5, 8.0]).point, 12)
    2.0
    """
    logs = estimate_mean([math.log(ratio) for ratio in ratios], level)
    point, low, high = (math.exp(end) for end in (logs.point, logs.low, logs.high))
    return Estimate(point, low, high, tuple(ratios), logs.p, level)


def estimate_median(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Return the median over seeds with the interval between two of the values; they may be +inf (not reached).

    The interval is that of the sign test, whatever the distribution: the k-th value from below to the k-th from above,
    with the largest k that misses in a share of `level` at most. At 5 % fewer than six values have none: even their
    range holds the median in 93.75 % of cases at most.

    >>> estimate_median([4.0, 1.0, 2.0, math.inf, 3.0, 5.0]).high
    inf
    """
    if not len(values):
        return NO_ESTIMATE
    ordered = sorted(values)
    k = _rank(len(values), level)
    point = float(np.median(ordered))
    return Estimate(point, *((ordered[k - 1], ordered[-k]) if k else (math.nan, math.nan)), tuple(values), level=level)


@functools.cache
def _rank(n: int, level: float) -> int:
    """Return the largest k so that fewer than k of `n` values lie below the median in `level` / 2 of cases at most."""
    return int(stats.binom.ppf(level / 2, n, 0.5))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for there being several (Holm 1979); NaN stays NaN and does not count.

    Claims with a corrected value of at most `LEVEL` are wrong, one or more of them, in at most that share of reports,
    whatever the dependence between them.

    >>> holm([0.01, math.nan, 0.04, 0.03])
    [0.03, nan, 0.06, 0.06]
    """
    corrected = list(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[i]))
        corrected[i] = largest
    return corrected


def power_of(effect: float, n: int, level: float = LEVEL) -> float:
    """Return the chance that a two-sided t test of `n` >= 2 seeds sees an effect, given in standard deviations.

    >>> round(power_of(1.0, 10), 3)
    0.803
    """
    # Over the quantiles of the estimated spread; scipy's noncentral t has no value for large effects.
    spreads = np.sqrt(2 * special.gammaincinv((n - 1) / 2, (1 + NODES) / 2) / (n - 1))
    thresholds, shift = special.stdtrit(n - 1, 1 - level / 2) * spreads, abs(effect) * math.sqrt(n)
    seen = special.ndtr(shift - thresholds) + special.ndtr(-thresholds - shift)
    return float(seen @ WEIGHTS / 2)


def seeds_needed(effect: float, level: float = LEVEL) -> int | None:
    """Return the least number of seeds that see an effect, given in standard deviations, with a chance of `POWER`.

    Returns:
        At least 2; None where even `MAX_SEEDS_NEEDED` do not.

    >>> seeds_needed(1.0), seeds_needed(0.0)
    (10, None)
    """
    counts = range(2, MAX_SEEDS_NEEDED + 1)
    place = bisect.bisect_left(counts, POWER, key=lambda n: power_of(effect, n, level))  # more seeds see more
    return counts[place] if place < len(counts) else None


@functools.cache
def detectable(n: int, level: float = LEVEL) -> float:
    """Return the smallest effect that `n` >= 2 seeds see with a chance of `POWER`, in standard deviations.

    >>> round(detectable(10), 3)
    0.996
    """
    largest = 1.0
    while power_of(largest, n, level) < POWER:
        largest *= 2
    return cast(float, optimize.brentq(lambda effect: power_of(effect, n, level) - POWER, 0.0, largest))


def bootstrap_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % BCa bootstrap interval (Efron 1987) of the mean of many exchangeable values, such as prompts.

    Unlike Student's t it follows a skewed distribution. Never for a few seeds, where it is too narrow
    (docs/statistics.md has the numbers). The same values give the same interval.

    Args:
        values: Finite, in any order.

    Returns:
        (low, high); the value twice where all are equal; (NaN, NaN) for fewer than two, which say nothing of their
        spread.

    >>> [round(end, 1) for end in bootstrap_mean([0.0] * 30 + [1.0] * 10)]
    [0.1, 0.4]
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    if not np.isfinite(data).all():
        raise ValueError(f"expected finite values, got {values}")
    if data.size < 2:
        return math.nan, math.nan
    if data[0] == data[-1]:
        return float(data[0]), float(data[0])
    random: dict[str, Any] = {"random_state": np.random.default_rng(0)}  # named so up to scipy 1.14, and known since
    found = stats.bootstrap((data,), np.mean, n_resamples=9999, batch=1000, method="BCa", **random)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
