"""Which differences a report may claim: one decision over all of its comparisons together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.efficiency import Comparison
from analysis.reward_kl import EqualKL
from analysis.statistics import Estimate, holm


@dataclass(frozen=True)
class Claim:
    """One tested difference.

    Attributes:
        estimate: Of the difference or ratio, with its interval and its p-value.
        neutral: Its value where there is no difference: 0 or 1.
        p: The p-value after Holm's correction; NaN where nothing was tested.
        n_tested: Differences that were corrected for, with this one.
    """

    estimate: Estimate
    neutral: int
    p: float
    n_tested: int

    @property
    def direction(self) -> int:
        """+1 or -1 where a value above or below `neutral` may be claimed, else 0."""
        if math.isnan(self.p) or self.p > self.estimate.level:
            return 0
        return 1 if self.estimate.point > self.neutral else -1

    @property
    def level(self) -> float:
        """Level at which the difference would be claimed whatever the others show."""
        return self.estimate.level / max(1, self.n_tested)


@dataclass(frozen=True)
class Claims:
    """The tested differences of one comparison: in steps to the target, in area, and in the metric at equal KL."""

    steps: Claim
    area: Claim
    at_kl: Claim | None

    @property
    def overall(self) -> int:
        """Which way a headline points: by the steps, or by the area where the steps say nothing."""
        return self.steps.direction or self.area.direction


def claims_of(pairs: Sequence[tuple[Comparison, EqualKL | None]]) -> list[Claims]:
    """Return the claims of each comparison, corrected over all of them.

    Steps and areas of all comparisons are one family: where none of them differs, a report says so in at least 95 % of
    cases, also where seeds are added until verdicts are decided: then each look has a level of its own. What holds at
    equal KL explains a headline and never makes one; it is a family of its own.
    """
    headline = corrected([each for one, _ in pairs for each in ((one.speedup.restricted, 1), (one.paired, 0))])
    at_kl = iter(corrected([(equal.difference, 0) for _, equal in pairs if equal is not None]))
    return [
        Claims(steps, area, None if equal is None else next(at_kl))
        for steps, area, (_, equal) in zip(headline[0::2], headline[1::2], pairs, strict=True)
    ]


def corrected(family: Sequence[tuple[Estimate, int]]) -> list[Claim]:
    """Return the claims of a family of (estimate, neutral value), corrected over all of them."""
    p_values = [estimate.p for estimate, _ in family]
    n_tested = sum(not math.isnan(p) for p in p_values)
    return [
        Claim(estimate, neutral, p, n_tested) for (estimate, neutral), p in zip(family, holm(p_values), strict=True)
    ]
