"""How many seeds a difference takes, and what the seeds of a study could have seen: the tables of `grpovi power`."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis.claims import Claim, claims_of
from analysis.efficiency import Comparison
from analysis.errors import ReportError
from analysis.statistics import MAX_SEEDS_NEEDED, detectable, power_of, seeds_needed
from analysis.study import analyse
from analysis.terminal import PRINTED_WIDTH
from analysis.wording import count, number, percent

SPEEDUPS = (1.1, 1.25, 1.5, 2.0, 3.0)
RISES = (0.02, 0.05, 0.1, 0.2)
"""Differences in area that are tabulated, as shares of the baseline's rise."""
LEAST_SEEDS = 3
"""Fewer say too little about the spread over seeds."""


@dataclass(frozen=True)
class Effect:
    """A difference that there could be: its size in words and in standard deviations over seeds."""

    words: str
    size: float


@dataclass(frozen=True)
class Power:
    """What one comparison can see, from the spread that its seeds show.

    Attributes:
        arm: Name of the arm.
        baseline: Name of its baseline.
        n_seeds: Paired seeds.
        level: Level of each test: 5 % divided by the differences that the report tests.
        steps_sd: Standard deviation over seeds of the logarithm of the ratio of (restricted) steps; NaN where unknown.
        area_sd: Standard deviation over seeds of the difference in area.
        rise: The baseline's rise, in units of the metric; NaN where it did not rise.
        missed: Paired runs that did not reach the target.
    """

    arm: str
    baseline: str
    n_seeds: int
    level: float
    steps_sd: float
    area_sd: float
    rise: float
    missed: int

    @property
    def speedup(self) -> float:
        """The smallest speedup that these seeds see four times in five; NaN where the steps say nothing."""
        return math.exp(detectable(self.n_seeds, self.level) * self.steps_sd)

    @property
    def area(self) -> float:
        """The smallest difference in area that they see four times in five, in units of the metric."""
        return detectable(self.n_seeds, self.level) * self.area_sd

    def effects(self) -> list[Effect]:
        """List the differences that are tabulated, without those that the runs cannot be measured by."""
        steps = [
            Effect(f"speedup {value:g}", math.log(value) / self.steps_sd) for value in SPEEDUPS if self.steps_sd > 0
        ]
        area = [
            Effect(f"area {number(share * self.rise)}: {100 * share:g} % of the rise", share * self.rise / self.area_sd)
            for share in RISES
            if self.rise > 0 and self.area_sd > 0
        ]
        return steps + area


def power_of_comparison(comparison: Comparison, claim: Claim) -> Power | None:
    """Return what a comparison can see; None for fewer than `LEAST_SEEDS` paired seeds.

    Args:
        comparison: Must have a baseline.
        claim: Its claim in area, for the level that the correction for several differences leaves.
    """
    n, speedup = len(comparison.paired_seeds), comparison.speedup
    if n < LEAST_SEEDS or len(comparison.paired.values) < n:
        return None
    ratios = speedup.restricted.values
    return Power(
        arm=comparison.arm,
        baseline=str(comparison.baseline),
        n_seeds=n,
        level=claim.level,
        steps_sd=float(np.std(np.log(ratios), ddof=1)) if ratios else math.nan,
        area_sd=float(np.std(comparison.paired.values, ddof=1)),
        rise=comparison.target.final - comparison.target.first,
        missed=speedup.arm_missed + speedup.baseline_missed,
    )


def print_power(
    study_dir: str | Path,
    console: Console | None = None,
    *,
    metric: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> list[Power]:
    """Print for every comparison of a study what its seeds could have seen, and what other differences take.

    Args:
        study_dir: As for `write_report`; a pilot of three seeds or more will do.
        console: Where to print; None is standard output, at 100 columns where that is no terminal.
        metric: As for `write_report`.
        baseline: Likewise.
        target: Likewise.

    Returns:
        One entry a comparison.

    Raises:
        ReportError: As `write_report`; or no comparison has `LEAST_SEEDS` paired seeds.
    """
    analysis = analyse(study_dir, metric=metric, baseline=baseline, target=target)
    claims = claims_of([(comparison, None) for comparison in analysis.paired])
    found = [
        power
        for comparison, own in zip(analysis.paired, claims, strict=True)
        if (power := power_of_comparison(comparison, own.area)) is not None
    ]
    if not found:
        raise ReportError(
            f"{study_dir}: no comparison has {LEAST_SEEDS} seeds that count in both arms; run a pilot of that many"
        )
    console = console or Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH)
    console.print(*map(_printed, found))
    return found


def _printed(power: Power) -> Group:
    seeds = count(power.n_seeds, "seed")
    seen = [f"a difference in area of {number(power.area)}"]
    if not math.isnan(power.speedup):
        seen.insert(0, f"a speedup of {number(power.speedup)} (or its inverse)")
    parts: list[Text | Padding | Table] = [
        Text(f"{power.arm} against {power.baseline}", style="bold"),
        Padding(Text(f"{seeds} see {' and '.join(seen)} four times in five."), (0, 0, 0, 2)),
    ]
    if power.missed:
        parts.append(
            Padding(
                Text(
                    f"{count(power.missed, 'run')} of {2 * power.n_seeds} did not reach the target, so the ratio of "
                    "steps scatters less than it would in longer runs."
                ),
                (0, 0, 0, 2),
            )
        )
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("if there were a")
    table.add_column(f"seen with {seeds}", justify="right")
    table.add_column("seeds for 80 %", justify="right")
    for effect in power.effects():
        needed = seeds_needed(effect.size, power.level)
        table.add_row(
            effect.words,
            percent(power_of(effect.size, power.n_seeds, power.level)),
            f"over {MAX_SEEDS_NEEDED:,}" if needed is None else f"{needed:,}",
        )
    note = f"At the spread of these seeds, paired, each test at {100 * power.level:.2g} %."
    return Group(
        *parts, table, Padding(Text(f"{note} Three to five seeds know the spread only roughly.\n"), (0, 0, 0, 2))
    )
