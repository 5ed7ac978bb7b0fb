"""Reads the study of this folder: python experiments/reward-variance/slopes.py runs/reward-variance [PICTURE.png].

Prints how the steps to a gain depend on the reward's variance at the start, as slopes between logarithms, and draws
them.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from analysis import load_runs
from analysis.curves import curves_of
from analysis.statistics import Estimate, estimate_mean
from analysis.style import INK, PALETTE, RC
from grpovi_lightning import metric_keys

GOLD = metric_keys.held_out(metric_keys.rewards_mean("gold"))
VARIANCE = metric_keys.ADJUSTMENT_UNIFORM_VARIANCE_BEFORE
GAIN = 0.1
"""Rise of the held-out gold reward, which the scale of the learned reward does not change."""
SCALES = ("0.25", "0.5", "1", "2", "4")
LINES: Mapping[str, tuple[str, ...]] = {
    **{
        f"{optimizer}, advantages {divided}": tuple(f"{optimizer}-{scaling}-{scale}" for scale in SCALES)
        for optimizer in ("adamw", "sgd")
        for scaling, divided in (("group", "divided by the group's std"), ("none", "not divided"))
    },
    "sgd, not divided, other reward models": ("sgd-none-1", "sgd-none-taught-250", "sgd-none-taught-100"),
}
"""What a line is drawn through: its arms."""
BOUND = -1 / 3
"""The slope below which no slope can stay as the variance goes to 0: arXiv 2503.15477, Theorem 1."""


def measured(runs: pd.DataFrame, gain: float = GAIN) -> pd.DataFrame:
    """Return one row a run: `arm`, `seed`, `variance` at the start, and `steps` to the gain, inf if it never came."""
    variances = curves_of(runs, VARIANCE)
    rows = [
        (arm, seed, variances[arm][seed].first, curve.first_crossing(curve.first + gain))
        for arm, seeds in curves_of(runs, GOLD).items()
        for seed, curve in seeds.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "variance", "steps"])


def slope(found: pd.DataFrame, arms: Sequence[str]) -> tuple[Estimate, int]:
    """Return the slope of log steps over log variance, and the number of seeds that it lacks.

    A line is fitted to the runs of each seed by least squares. The estimate is the mean over seeds with Student's t
    interval. A seed with a run that never came to the gain has no line.
    """
    slopes = []
    seeds = found[found["arm"].isin(arms)].groupby("seed")
    for _, rows in seeds:
        if len(rows) == len(arms) and np.isfinite(rows["steps"]).all():
            slopes.append(float(np.polyfit(np.log(rows["variance"]), np.log(rows["steps"]), 1)[0]))
    return estimate_mean(slopes), seeds.ngroups - len(slopes)


def draw(found: pd.DataFrame) -> Figure:
    """Draw geometric means over seeds of the runs that came to the gain, log by log, beside the slope of the bound."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.5, 4.6), layout="constrained")
        axes = figure.subplots()
        reached = found[np.isfinite(found["steps"])]
        for (label, arms), colour in zip(LINES.items(), PALETTE, strict=False):
            groups = [reached[reached["arm"] == arm] for arm in arms]
            points = sorted(
                tuple(math.exp(np.log(group[name]).mean()) for name in ("variance", "steps"))
                for group in groups
                if len(group)
            )
            axes.plot(*zip(*points, strict=True), marker="o", label=label, color=colour)
        span = np.array([found["variance"].min(), found["variance"].max()])
        level = float(np.exp(np.log(reached["steps"]).mean()))
        axes.plot(span, level * (span / span.prod() ** 0.5) ** BOUND, linestyle="dashed", color=INK, label="slope -1/3")
        axes.set(xscale="log", yscale="log", xlabel="reward variance within a group at step 0 (mean over groups)")
        for axis in (axes.xaxis, axes.yaxis):  # plain numbers: the style of the reports writes no powers
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        axes.set_ylabel(f"steps until the gold reward has risen by {GAIN}")
        figure.legend(loc="outside right upper")
    return figure


def main(study: str, picture: str | None = None) -> None:
    """Print the table of slopes, and write the picture."""
    found = measured(load_runs(study))
    print(f"Steps until held-out gold reward has risen by {GAIN}, over reward variance at step 0")
    for label, arms in LINES.items():
        found_slope, lacking = slope(found, arms)
        steps = {arm: np.exp(np.log(found.loc[found["arm"] == arm, "steps"]).mean()) for arm in arms}
        spans = ", ".join(f"{arm.rpartition('-')[2]}: {mean:.1f}" for arm, mean in steps.items())
        interval = f"{found_slope.point:.3f} ({found_slope.low:.3f} to {found_slope.high:.3f})"
        print(f"{label}: slope {interval}, {len(found_slope.values)} seeds, {lacking} without a line; steps {spans}")
    if picture is not None:
        draw(found).savefig(picture, dpi=110)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python slopes.py STUDY_FOLDER [PICTURE.png]; the folder is what `grpovi compare` made")
    main(*sys.argv[1:])
