"""Steps of the baseline over steps of an arm, and what can be said where one of them never arrives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.curves import Curve
from analysis.statistics import LEVEL, NO_ESTIMATE, Estimate, estimate_ratio


@dataclass(frozen=True)
class Speedup:
    """Baseline's steps to the target / arm's steps to it, paired by seed; above 1 the arm is sooner.

    A seed on which one of the two runs did not reach the target is never left out: leaving it out would favour the
    arm that failed. With such a seed the ratio of steps is not known. Tested is the ratio of *restricted* steps:
    a run that did not arrive counts as if it had arrived where the shorter run of its seed ends (as the restricted mean
    survival time does in medicine). It is known with every seed, and where the arms do not differ it scatters about 1
    evenly, however many runs do not arrive. Where only one of the two arms has such runs it also bounds the ratio.

    Attributes:
        restricted: Geometric mean over the paired seeds of the ratio of restricted steps.
        only_arm: Paired seeds on which only the arm reached the target.
        only_baseline: Paired seeds on which only the baseline did.
        neither: Paired seeds on which neither did.
        already_there: Paired seeds on which a run was at the target at its first evaluation, where a ratio of steps
            has no meaning; then `restricted` is undefined.
    """

    restricted: Estimate
    only_arm: int = 0
    only_baseline: int = 0
    neither: int = 0
    already_there: int = 0

    @property
    def arm_missed(self) -> int:
        """Paired seeds on which the arm did not reach the target."""
        return self.only_baseline + self.neither

    @property
    def baseline_missed(self) -> int:
        """Paired seeds on which the baseline did not reach the target."""
        return self.only_arm + self.neither

    @property
    def estimate(self) -> Estimate:
        """Geometric mean over the paired seeds; undefined where a run did not reach the target."""
        return NO_ESTIMATE if self.arm_missed or self.baseline_missed else self.restricted


def speedup_of(pairs: Sequence[tuple[Curve, Curve]], target: float, level: float = LEVEL) -> Speedup:
    """Return the speedup over paired seeds, and the counts of runs that did not arrive.

    Args:
        pairs: (arm's curve, baseline's curve), one a seed. Both count up to where the shorter of them ends.
        target: The value to reach; NaN where there is none.
        level: Of the interval and the test.

    >>> import numpy as np
    >>> soon, late = (Curve(np.array([0.0, end]), np.array([0.0, 1.0])) for end in (10, 20))
    >>> speedup_of([(soon, late)], 0.5).estimate.point
    2.0
    """
    if math.isnan(target) or not pairs:
        return Speedup(NO_ESTIMATE)
    ends = [min(arm.steps[-1], baseline.steps[-1]) for arm, baseline in pairs]
    steps = [(arm.first_crossing(target), baseline.first_crossing(target)) for arm, baseline in pairs]
    reached = [(arm <= end, baseline <= end) for (arm, baseline), end in zip(steps, ends, strict=True)]
    counts = {
        "only_arm": reached.count((True, False)),
        "only_baseline": reached.count((False, True)),
        "neither": reached.count((False, False)),
        "already_there": sum(arm.first >= target or baseline.first >= target for arm, baseline in pairs),
    }
    if counts["already_there"]:
        return Speedup(NO_ESTIMATE, **counts)
    restricted = [(min(arm, end), min(baseline, end)) for (arm, baseline), end in zip(steps, ends, strict=True)]
    return Speedup(estimate_ratio([baseline / arm for arm, baseline in restricted], level), **counts)
