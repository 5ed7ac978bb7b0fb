"""What pairing by seed bought: the variance of a difference with common random numbers, and without."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.statistics import CONFIDENCE

LEAST_SEEDS = 4
"""From fewer seeds a correlation has no interval."""


@dataclass(frozen=True)
class Pairing:
    """The variance over seeds of the difference between two arms, paired and as if the seeds had nothing in common.

    Attributes:
        paired: Variance of the differences, each on one seed.
        unpaired: Sum of the variances of the two arms: that of the difference between runs with seeds of their own.
        correlation: Of the two arms over seeds.
        low: Lower end of its 95 % interval (Fisher's z); NaN for fewer than `LEAST_SEEDS` seeds.
        high: Upper end of it.
    """

    paired: float
    unpaired: float
    correlation: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """Paired variance / unpaired variance: below 1 the pairing helped."""
        return self.paired / self.unpaired


def pairing_of(arm: Sequence[float], baseline: Sequence[float]) -> Pairing | None:
    """Return what pairing did; None for fewer than three seeds, or where an arm does not vary.

    Args:
        arm: [n], one value a seed.
        baseline: [n], of the same seeds.

    >>> found = pairing_of([1.0, 2.0, 3.0], [1.5, 2.0, 3.5])
    >>> round(found.paired, 3), round(found.ratio, 3)
    (0.083, 0.04)
    """
    ours, theirs = np.asarray(arm, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if ours.size < 3 or not ours.std() or not theirs.std():
        return None
    correlation = float(np.corrcoef(ours, theirs)[0, 1])
    low, high = math.nan, math.nan
    if ours.size >= LEAST_SEEDS and abs(correlation) < 1:
        half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) / math.sqrt(ours.size - 3)
        low, high = (math.tanh(math.atanh(correlation) + shift) for shift in (-half, half))
    paired, unpaired = float((ours - theirs).var(ddof=1)), float(ours.var(ddof=1) + theirs.var(ddof=1))
    return Pairing(paired, unpaired, correlation, low, high)
