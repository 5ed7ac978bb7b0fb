"""Steps of the baseline over steps of an arm, and what can be said where one of them never arrives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.curves import Curve
from analysis.statistics import NO_ESTIMATE, Bootstrap, Estimate, estimate_ratio


@dataclass(frozen=True)
class Speedup:
    """Baseline's steps to the target / arm's steps to it, paired by seed; above 1 the arm is sooner.

    A seed on which one of the two runs did not reach the target is never left out: leaving it out would favour the
    arm that failed. With such a seed the estimate is undefined. Counting every run that did not arrive as if it had
    arrived at its last step then still bounds the geometric mean, as long as only one of the two arms has such runs.

    Attributes:
        estimate: Geometric mean over the paired seeds; undefined where a seed did not reach the target.
        at_most: Upper bound of the geometric mean where only the arm has seeds that did not reach; else NaN.
        at_least: Lower bound of it where only the baseline has; else NaN.
        only_arm: Paired seeds on which only the arm reached the target.
        only_baseline: Paired seeds on which only the baseline did.
        neither: Paired seeds on which neither did.
        already_there: Paired seeds on which a run was at the target at its first evaluation, where a ratio of steps
            has no meaning; then the estimate is undefined as well.
    """

    estimate: Estimate
    at_most: float = math.nan
    at_least: float = math.nan
    only_arm: int = 0
    only_baseline: int = 0
    neither: int = 0
    already_there: int = 0


def speedup_of(pairs: Sequence[tuple[Curve, Curve]], target: float, bootstrap: Bootstrap) -> Speedup:
    """Return the speedup over paired seeds, or the bounds and counts that take its place.

    Args:
        pairs: (arm's curve, baseline's curve), one a seed.
        target: The value to reach; NaN where there is none.
        bootstrap: The intervals.

    >>> import numpy as np
    >>> soon, late = (Curve(np.array([0.0, end]), np.array([0.0, 1.0])) for end in (10, 20))
    >>> speedup_of([(soon, late)], 1.0, Bootstrap()).estimate.point
    2.0
    """
    if math.isnan(target) or not pairs:
        return Speedup(NO_ESTIMATE)
    steps = [(arm.first_crossing(target), baseline.first_crossing(target)) for arm, baseline in pairs]
    reached = [(math.isfinite(arm), math.isfinite(baseline)) for arm, baseline in steps]
    counts = {
        "only_arm": reached.count((True, False)),
        "only_baseline": reached.count((False, True)),
        "neither": reached.count((False, False)),
        "already_there": sum(arm.first >= target or baseline.first >= target for arm, baseline in pairs),
    }
    if counts["already_there"]:
        return Speedup(NO_ESTIMATE, **counts)
    # Where a run did not arrive, its last step is the least number of steps it could have needed.
    least = [
        (min(arm_steps, arm.steps[-1]), min(baseline_steps, baseline.steps[-1]))
        for (arm_steps, baseline_steps), (arm, baseline) in zip(steps, pairs, strict=True)
    ]
    estimate = estimate_ratio([baseline / arm for arm, baseline in least], bootstrap)
    if all(both == (True, True) for both in reached):
        return Speedup(estimate, **counts)
    arm_arrives = all(arm for arm, _ in reached)
    baseline_arrives = all(baseline for _, baseline in reached)
    return Speedup(
        NO_ESTIMATE,
        at_most=estimate.point if baseline_arrives else math.nan,
        at_least=estimate.point if arm_arrives else math.nan,
        **counts,
    )
