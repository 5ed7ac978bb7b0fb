"""Statistics over tasks x seeds, after Agarwal et al. 2021 (arXiv 2108.13264), and their intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special, stats

from analysis.statistics import Estimate

N_RESAMPLES = 2000

Scores = Mapping[str, Mapping[int, float]]
"""Task -> seed -> score of one method."""
Statistic = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]
"""Maps the scores of two methods, each [..., n] for each task, to one number each [...]."""


def interquartile_mean(*samples: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of all values together: [..., n] for each task -> [...].

    >>> float(interquartile_mean(np.array([1.0, 2.0, 3.0]), np.array([4.0, 100.0])))
    3.0
    """
    return np.asarray(stats.trim_mean(np.concatenate(samples, axis=-1), 0.25, axis=-1))


def mean_of_tasks(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over tasks of the mean over their values: [..., n] for each task -> [...]."""
    return np.mean([values.mean(axis=-1) for values in samples], axis=0)


def probability_of_improvement(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the chance that one of our runs scores above one of theirs, mean over tasks; a draw counts half.

    Args:
        ours: [..., n] for each task.
        theirs: [..., m] for each task.

    >>> float(probability_of_improvement([np.array([1.0, 3.0])], [np.array([2.0, 1.0])]))
    0.625
    """
    shares = []
    for one, other in zip(ours, theirs, strict=True):
        pairs = one[..., :, None], other[..., None, :]
        shares.append(((pairs[0] > pairs[1]) + 0.5 * (pairs[0] == pairs[1])).mean(axis=(-2, -1)))
    return np.mean(shares, axis=0)


def iqm_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the interquartile mean of ours - that of theirs; arrays as for `probability_of_improvement`."""
    return interquartile_mean(*ours) - interquartile_mean(*theirs)


def estimate_over_tasks(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], statistic: Statistic, level: float, neutral: float = 0.0
) -> Estimate:
    """Return a statistic with Student's t interval, its standard error from a bootstrap of seeds within each task.

    Both arrays of a task hold the same seeds, which are drawn together: so the pairing counts. Resampling n values
    understates their variance by (n - 1) / n, which is made good; the degrees of freedom are those of all tasks.
    """
    point = float(statistic(ours, theirs))
    sizes = [one.size for one in ours]
    if min(sizes) < 2:
        return Estimate(point, math.nan, math.nan, level=level)

    def of_seeds(*seeds: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = [index.astype(int) for index in seeds]
        return statistic(*([each[index] for each, index in zip(of, drawn, strict=True)] for of in (ours, theirs)))

    random: dict[str, Any] = {"random_state": np.random.default_rng(0)}  # named so up to scipy 1.14, and known since
    seeds = [np.arange(size) for size in sizes]
    found = stats.bootstrap(seeds, of_seeds, n_resamples=N_RESAMPLES, vectorized=True, method="percentile", **random)
    freedom = sum(sizes) - len(sizes)
    error = float(found.standard_error) * math.sqrt(sum(sizes) / freedom)
    if error <= 1e-12 * max(1.0, abs(point)):  # of one value again and again, which says nothing of others
        return Estimate(point, math.nan, math.nan, level=level)
    half = float(special.stdtrit(freedom, 1 - level / 2)) * error
    p = 2 * float(special.stdtr(freedom, -abs(point - neutral) / error))
    return Estimate(point, point - half, point + half, p=p, level=level)


def within(estimate: Estimate, least: float, most: float) -> Estimate:
    """Return the estimate with its interval cut to the values that there can be."""
    low, high = np.clip([estimate.low, estimate.high], least, most)  # unlike max and min, leaves NaN alone
    return replace(estimate, low=float(low), high=float(high))


def profile_of(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of runs above each threshold, mean over tasks: [N] -> [N]."""
    above = [np.array(list(seeds.values()))[:, None] > thresholds for seeds in scores.values()]
    return np.mean([of_task.mean(axis=0) for of_task in above], axis=0)
