"""Intervals over seeds: an exact or seeded percentile bootstrap, and Student's t as a check beside it."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps resamples [R, n] to one number each [R]."""

CONFIDENCE = 0.95
MAX_SEEDS_NEEDED = 1000


def mean(samples: np.ndarray) -> np.ndarray:
    """Return row means: [R, n] -> [R]."""
    return samples.mean(axis=1)


def median(samples: np.ndarray) -> np.ndarray:
    """Return row medians: [R, n] -> [R]. Entries may be infinite (a target that was not reached)."""
    return np.median(samples, axis=1)


@dataclass(frozen=True)
class Bootstrap:
    """95 % percentile bootstrap over seeds.

    All n**n resamples are enumerated where there are at most `max_enumerated` of them (n <= 5), so there is no
    Monte-Carlo noise; otherwise `n_resamples` are drawn from a generator seeded with `seed`, the same resamples for
    every quantity with n seeds, so that the result depends neither on the order of the calls nor of the runs.

    The ends are order statistics of the resampled values, not interpolated: for the discrete distribution of a few
    seeds interpolation would give an interval narrower than the distribution it stands for, and it is undefined where
    a value is infinite. With 2 or 3 seeds the 95 % interval is therefore the range of the seeds: too narrow, and no
    percentile bootstrap can do better. `t_interval` is the check.
    """

    n_resamples: int = 9999
    seed: int = 0
    max_enumerated: int = 10_000

    def __post_init__(self) -> None:
        if self.n_resamples < 100:
            raise ValueError(f"n_resamples must be at least 100, got {self.n_resamples}")

    def interval(self, values: Sequence[float], statistic: Statistic) -> tuple[float, float]:
        """Return the percentile interval of `statistic` over the seeds.

        Args:
            values: [n], one value a seed; +inf is allowed, NaN is not.
            statistic: Maps resamples [R, n] to [R].

        Returns:
            (low, high); (NaN, NaN) for fewer than two seeds, which say nothing about the spread over seeds.

        >>> Bootstrap().interval([1.0, 2.0, 4.0, 3.0], mean)
        (1.5, 3.5)
        """
        data = np.asarray(values, dtype=np.float64)
        if data.ndim != 1 or np.isnan(data).any():
            raise ValueError(f"expected one value a seed without NaN, got {values}")
        if data.size < 2:
            return math.nan, math.nan
        replicates = np.sort(statistic(data[self._indices(data.size)]))
        # The lowest x with P(replicate <= x) >= 2.5 %, and its mirror image from above.
        skipped = math.ceil(len(replicates) * (1 - CONFIDENCE) / 2 - 1e-9) - 1
        return float(replicates[skipped]), float(replicates[len(replicates) - 1 - skipped])

    def _indices(self, n: int) -> np.ndarray:
        if n**n <= self.max_enumerated:
            return np.array(list(itertools.product(range(n), repeat=n)))
        return np.random.default_rng(self.seed).integers(n, size=(self.n_resamples, n))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's t interval of the mean over seeds; (NaN, NaN) for fewer than two or infinite values.

    It assumes that the values are roughly normal, and in return knows that few seeds leave the spread uncertain.

    >>> [round(end, 2) for end in t_interval([1.0, 2.0, 3.0])]
    [-0.48, 4.48]
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2 or not np.isfinite(data).all():
        return math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, data.size - 1) * data.std(ddof=1) / math.sqrt(data.size)
    return float(data.mean() - half), float(data.mean() + half)


def seeds_needed(values: Sequence[float]) -> int | None:
    """Return the number of seeds at which the t interval would exclude 0, if mean and spread stayed as in `values`.

    Returns:
        The smallest such number, at least 2; None for fewer than two values, for a mean of 0, or above
        `MAX_SEEDS_NEEDED`. With that many seeds the chance of seeing a real difference of this size is about
        one in two.

    >>> seeds_needed([1.0, 2.0, 3.0]), seeds_needed([-1.0, 1.0])
    (4, None)
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2 or not np.isfinite(data).all() or data.mean() == 0:
        return None
    ratio = data.std(ddof=1) / abs(data.mean())
    for n in range(2, MAX_SEEDS_NEEDED + 1):
        if stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * ratio / math.sqrt(n) < 1:
            return n
    return None


@dataclass(frozen=True)
class Estimate:
    """A number over seeds with its intervals, all in the unit of `values`.

    Attributes:
        point: The estimate; NaN where there is none, +inf for a median of values most of which are infinite.
        low: Lower end of the bootstrap interval; NaN for fewer than two seeds.
        high: Upper end of it.
        values: What was averaged, one a seed.
        t_low: Lower end of Student's t interval of the mean, the check for few seeds; NaN where it is not defined.
        t_high: Upper end of it.
    """

    point: float
    low: float
    high: float
    values: tuple[float, ...] = ()
    t_low: float = math.nan
    t_high: float = math.nan

    def excludes(self, value: float) -> bool:
        """Tell whether both intervals lie wholly on one side of `value`."""
        bootstrap = self.low > value or self.high < value
        student = self.t_low > value or self.t_high < value
        return bootstrap and student


NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan)


def estimate_mean(values: Sequence[float], bootstrap: Bootstrap) -> Estimate:
    """Return the mean over seeds of finite values, with both intervals; `NO_ESTIMATE` for no values."""
    if not len(values):
        return NO_ESTIMATE
    point = float(np.mean(values))
    return Estimate(point, *bootstrap.interval(values, mean), tuple(values), *t_interval(values))


def estimate_median(values: Sequence[float], bootstrap: Bootstrap) -> Estimate:
    """Return the median over seeds with its bootstrap interval, and no t interval; values may be +inf (not reached)."""
    if not len(values):
        return NO_ESTIMATE
    return Estimate(float(np.median(values)), *bootstrap.interval(values, median), tuple(values))


def estimate_ratio(ratios: Sequence[float], bootstrap: Bootstrap) -> Estimate:
    """Return the geometric mean over seeds of positive finite ratios; both intervals are taken of the logarithms.

    >>> round(estimate_ratio([0.5, 8.0], Bootstrap()).point, 12)
    2.0
    """
    if not len(ratios):
        return NO_ESTIMATE
    logs = estimate_mean([math.log(ratio) for ratio in ratios], bootstrap)
    point, low, high = (math.exp(end) for end in (logs.point, logs.low, logs.high))
    return Estimate(point, low, high, tuple(ratios), math.exp(logs.t_low), math.exp(logs.t_high))
