"""Reward at equal KL: whether a gain in steps is a better direction or only a weaker penalty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.curves import Curve, Curves
from analysis.statistics import LEVEL, Estimate, estimate_mean


@dataclass(frozen=True)
class EqualKL:
    """The metric of an arm and of its baseline where both have spent the same KL.

    Per seed, the KL is the largest one that both runs reach; each run's metric is read off where its KL curve first
    arrives there, linear between evaluations.

    Attributes:
        seeds: Seeds that count, in order.
        kl: Mean over seeds of the KL, nats a token.
        difference: Mean over seeds of (arm - baseline) at that KL, in units of the metric.
    """

    arm: str
    baseline: str
    seeds: tuple[int, ...]
    kl: float
    difference: Estimate


def value_at_kl(metric: Curve, kl: Curve, level: float) -> float:
    """Return the metric where the KL curve first reaches `level`; NaN where it never does.

    >>> steps = np.array([0.0, 10.0])
    >>> value_at_kl(Curve(steps, np.array([0.0, 1.0])), Curve(steps, np.array([0.0, 0.5])), 0.25)
    0.5
    """
    return metric.at(kl.first_crossing(level))


def at_equal_kl(
    arm: str, baseline: str, seeds: Sequence[int], metric: Curves, kl: Curves, level: float = LEVEL
) -> EqualKL | None:
    """Compare an arm with its baseline at equal KL, on the paired `seeds`; `level`: of the interval and the test.

    Returns:
        The comparison over the seeds that logged KL in both arms and left KL 0 in both; None where there is none.
    """
    levels: dict[int, float] = {}
    differences: list[float] = []
    for seed in seeds:
        if seed not in kl.get(arm, {}) or seed not in kl.get(baseline, {}):
            continue
        reached = float(min(kl[arm][seed].values.max(), kl[baseline][seed].values.max()))
        ours, theirs = (value_at_kl(metric[name][seed], kl[name][seed], reached) for name in (arm, baseline))
        difference = ours - theirs
        if reached > 0 and np.isfinite(difference):
            levels[seed] = reached
            differences.append(difference)
    if not levels:
        return None
    mean_level = float(np.mean(list(levels.values())))
    return EqualKL(arm, baseline, tuple(levels), mean_level, estimate_mean(differences, level))
