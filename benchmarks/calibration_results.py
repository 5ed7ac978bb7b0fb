"""Judged studies of calibration.py -> how often intervals contain the truth and what is said; tables, picture."""

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from reporting import label_axes, print_table
from rich.console import Console
from scipy import stats

from analysis.style import DASHES, FAINT, PALETTE, RC
from analysis.tables import groups, rows_where

STUDY_COLUMNS = ["speedup", "seeds", "study", "said", "missed", "quantity", "truth", "values", "low", "high"]
"""One row a study and quantity: `missed` is the share of runs that did not reach the target, `values` what the report
averages over the seeds, `low` and `high` the interval of its verdict, `truth` the mean over endlessly many seeds."""
QUANTITIES = {"steps": "ratio of steps", "area": "difference in area"}
VERDICT = "verdict"
CLAIMS = ("faster", "slower", "higher", "lower", "mixed")

Ends = tuple[np.ndarray, np.ndarray]
"""Lower and upper ends of intervals, [studies] each."""


def resampled(values: np.ndarray, method: str) -> Ends:
    """Return scipy's bootstrap intervals of the means of `values`, [studies, seeds]; `method` as there."""
    random: dict[str, Any] = {
        "random_state": np.random.default_rng(0)
    }  # named so up to scipy 1.14, and still known by that name
    found = stats.bootstrap(
        (values,), np.mean, axis=1, n_resamples=499, method=method, batch=100, **random
    ).confidence_interval
    return found.low, found.high


OTHERS: dict[str, Callable[[np.ndarray], Ends]] = {
    "BCa": lambda values: resampled(values, "BCa"),
    "percentile": lambda values: resampled(values, "percentile"),
}
INTERVALS = (VERDICT, *OTHERS)
"""That of the verdicts, and two bootstraps of the same values beside it."""


def coverage_table(studies: pd.DataFrame) -> pd.DataFrame:
    """Return for each cell and quantity the share of studies whose intervals contain the truth.

    Args:
        studies: Of columns `STUDY_COLUMNS`.

    Returns:
        One row a cell and quantity: `speedup`, `seeds`, `quantity`, `known` (share of studies in which it is defined),
        `missed` (share of runs that did not reach the target), and for each of `INTERVALS` the share of studies.
    """
    rows = []
    for (speedup, seeds, quantity), of in groups(studies, "speedup", "seeds", "quantity"):
        values = np.array(of["values"].tolist())
        known = np.isfinite(values).all(axis=1)
        row = {"speedup": speedup, "seeds": seeds, "quantity": quantity}
        row |= {"known": known.mean(), "missed": of["missed"].mean()}
        truth, ends = of["truth"].to_numpy(), {VERDICT: of[["low", "high"]].to_numpy().T}
        ends |= {name: interval(values[known]) for name, interval in OTHERS.items()}
        for name, (low, high) in ends.items():
            at = truth if name == VERDICT else truth[known]
            row[name] = np.sum((low <= at) & (at <= high)) / known.sum()
        rows.append(row)
    return pd.DataFrame(rows)


def said_table(studies: pd.DataFrame) -> pd.DataFrame:
    """Return for each cell the share of studies whose headline makes each of `CLAIMS`, and `any` of them."""
    headlines = studies.drop_duplicates(["speedup", "seeds", "study"])
    shares = headlines.groupby(["speedup", "seeds"], sort=False)["said"].value_counts(normalize=True).unstack()
    shares = shares.reindex(list(CLAIMS), axis=1).fillna(0.0)
    return shares.assign(any=shares.sum(axis=1)).reset_index()


def decided_table(added: pd.DataFrame) -> pd.DataFrame:
    """Return for each speed-up and plan what studies say whose seeds are added until they are decided.

    Args:
        added: One row a study: `speedup`, `first` and `most` (the plan), `said`, `seeds` (at which it stopped),
            `steps_covered` and `area_covered` (whether the intervals of that look contain the truth).

    Returns:
        One row a cell: shares of the studies, and the mean of `seeds`.
    """
    rows = []
    for cell, of in groups(added, "speedup", "first", "most"):
        shares = {claim: float(np.mean(of["said"] == claim)) for claim in CLAIMS}
        means = {column: float(np.mean(of[column])) for column in ("seeds", "steps_covered", "area_covered")}
        row = dict(zip(("speedup", "first", "most"), cell, strict=True))
        rows.append(row | shares | {"any": sum(shares.values())} | means)
    return pd.DataFrame(rows)


def print_tables(console: Console, coverage: pd.DataFrame, said: pd.DataFrame, decided: pd.DataFrame) -> None:
    """Print the tables, in percent, a rule between speed-ups."""
    for quantity, title in QUANTITIES.items():
        of = rows_where(coverage, coverage["quantity"] == quantity)
        columns = ["speed-up", "seeds", "known", "missed", *INTERVALS]
        title = f"Coverage of 95 % intervals, {title}, % of the studies in which it is known"
        print_table(console, title, columns, _lines(of, ["known", "missed", *INTERVALS]))
    columns = ["speed-up", "seeds", *CLAIMS, "any"]
    print_table(console, "What headlines say, % of the studies", columns, _lines(said, [*CLAIMS, "any"]))
    shares = [*CLAIMS, "any", "steps_covered", "area_covered"]
    rows: list[list[str] | None] = []
    for (speedup,), of in groups(decided, "speedup"):
        rows += [None] if rows else []
        for _, row in of.iterrows():
            plan = [f"{speedup:g}", f"{row['first']:.0f} to {row['most']:.0f}", f"{row['seeds']:.1f}"]
            rows.append([*plan, *(f"{100 * row[share]:.1f}" for share in shares)])
    columns = ["speed-up", "seeds", "mean", *CLAIMS, "any", "steps: t", "area: t"]
    print_table(console, "Seeds added until decided: headlines, and coverage where it stops, %", columns, rows)


def _lines(table: pd.DataFrame, shares: list[str]) -> list[list[str] | None]:
    lines: list[list[str] | None] = []
    for (speedup,), of in groups(table, "speedup"):
        lines += [None] if lines else []
        for _, row in of.iterrows():
            texts = ["" if np.isnan(row[share]) else f"{100 * row[share]:.1f}" for share in shares]
            lines.append([f"{speedup:g}", f"{row['seeds']:.0f}", *texts])
    return lines


@matplotlib.rc_context(RC)
def calibration_figure(coverage: pd.DataFrame, said: pd.DataFrame, decided: pd.DataFrame) -> Figure:
    """Draw coverage against seeds, a panel a quantity, and how often a difference is said.

    Stars: where seeds are added until a verdict is decided, against the mean number of them.
    """
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(QUANTITIES) + 1)
    seeds = sorted(said["seeds"].unique())
    for axes, (quantity, title) in zip(panels, QUANTITIES.items(), strict=False):
        label_axes(axes, f"Coverage: {title}", "seeds", "% of studies")
        axes.axhspan(92, 98, color=FAINT, alpha=0.2, linewidth=0)
        for colour, name in zip(PALETTE, INTERVALS, strict=False):
            wide = coverage[coverage["quantity"] == quantity].pivot(index="seeds", columns="speedup", values=name)
            axes.plot(wide.index, 100 * wide, color=colour, linewidth=0.7, marker="o", markersize=3, alpha=0.6)
            axes.plot([], [], color=colour, marker="o", markersize=3, label=name)
        axes.set_ylim(70, 100.5)
        axes.legend(fontsize=8, loc="lower right")
    label_axes(panels[-1], "A difference is said", "seeds", "% of studies")
    panels[-1].axhline(5, color=FAINT, linestyle="dashed", linewidth=0.8)
    for i, (speedup, of) in enumerate(said.groupby("speedup", sort=False)):
        label = "no difference" if speedup == 1 else f"speed-up {speedup:g}"
        look = {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i % len(DASHES)][0]}
        panels[-1].plot(of["seeds"], 100 * of["any"], marker="o", markersize=3, label=label, **look)
        stars = rows_where(decided, decided["speedup"] == speedup)
        panels[-1].plot(stars["seeds"], 100 * stars["any"], marker="*", markersize=8, linestyle="", color=look["color"])
    panels[-1].plot([], [], marker="*", markersize=8, linestyle="", color=FAINT, label="until decided")
    panels[-1].legend(fontsize=8)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xticks(seeds, [str(n) for n in seeds])
        axes.minorticks_off()
    return figure
