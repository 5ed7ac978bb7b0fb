"""Which reward teaches a policy fastest: the table and the picture of what `grpovi teach` measured."""

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from analysis.statistics import bootstrap_mean
from analysis.style import FAINT, PALETTE, RC
from analysis.tables import rows_where
from analysis.terminal import PRINTED_WIDTH

TABLE_FILE, PICTURE_FILE = "teach.csv", "teach.png"


def teaching_table(prompts: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each reward, that of the largest variance first.

    Args:
        prompts: as `grpovi teach` writes them: a row for each prompt and reward.

    Returns:
        index `reward`; `prompts` that it scored; `variance` with `variance_low` and `variance_high` (95 %, BCa
        bootstrap over prompts), and `variance_min`, `variance_q1`, `variance_median`, `variance_q3`, `variance_max`
        over prompts; `adjusted` (mean variance after GRPOVI) and `gain` (its quotient with `variance`); `constant`
        (share of prompts whose completions all earn the same); `accuracy` (mean over prompts); `time` (the time that
        Razin et al. bound from below, relative to the reward of the largest variance: the quotient of variances to the
        power of -1/3), and `time_adjusted` (the same after GRPOVI).
    """
    rows = {str(name): _row(group) for name, group in prompts.groupby("reward", sort=False)}
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("variance", ascending=False)
    table.index.name = "reward"
    best = table["variance"].max()
    with np.errstate(divide="ignore", invalid="ignore"):
        table["time"] = (table["variance"] / best) ** (-1 / 3)
        table["time_adjusted"] = (table["adjusted"] / best) ** (-1 / 3)
    return table


def _row(group: pd.DataFrame) -> dict[str, Any]:
    known = rows_where(group, group["variance"].notna())
    variances, adjusted, constant, accuracy = (
        np.asarray(known[name], dtype=float) for name in ("variance", "adjusted_variance", "constant", "accuracy")
    )
    low, high = bootstrap_mean(list(variances))
    names = ("min", "q1", "median", "q3", "max")
    quartiles = np.quantile(variances, [0.0, 0.25, 0.5, 0.75, 1.0])
    return {
        "prompts": len(known),
        "variance": float(variances.mean()),
        "variance_low": low,
        "variance_high": high,
        **{f"variance_{name}": float(value) for name, value in zip(names, quartiles, strict=True)},
        "adjusted": float(adjusted.mean()),
        "gain": float(adjusted.mean() / variances.mean()) if variances.mean() > 0 else np.nan,
        "constant": float(constant.mean()),
        "accuracy": float(accuracy[~np.isnan(accuracy)].mean()) if not np.isnan(accuracy).all() else np.nan,
    }


@matplotlib.rc_context(RC)
def teaching_figure(prompts: pd.DataFrame, order: list[str]) -> Figure:
    """Draw the variance of each prompt's rewards as boxes, as they are and as GRPOVI would make them."""
    figure = Figure(figsize=(7.0, 1.3 + 0.8 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("Reward variance within a prompt", pad=8)
    axes.set_xlabel("variance, in units of the reward's variance over all completions")
    axes.grid(True, axis="x", color=FAINT, alpha=0.25, linewidth=0.6)
    for shift, column, colour, label in (
        (0.18, "variance", PALETTE[0], "as it is (GRPO)"),
        (-0.18, "adjusted_variance", PALETTE[1], "adjusted (GRPOVI)"),
    ):
        values = [prompts.loc[(prompts["reward"] == name) & prompts[column].notna(), column] for name in order]
        places = [len(order) - 1 - i + shift for i in range(len(order))]
        boxes = axes.boxplot(
            values,
            positions=places,
            orientation="horizontal",
            widths=0.3,
            patch_artist=True,
            showmeans=True,
            manage_ticks=False,
            medianprops={"color": "white"},
            flierprops={"markersize": 2, "markeredgecolor": colour},
            meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": colour},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=colour, edgecolor=colour, alpha=0.8)
        axes.plot([], [], color=colour, linewidth=6, label=label)
    axes.set_yticks(range(len(order)), order[::-1])
    axes.set_xlim(left=0.0)
    figure.legend(loc="outside lower left", ncols=2, fontsize=8.5)
    return figure


def print_teaching(prompts: pd.DataFrame, folder: Path, console: Console | None = None) -> pd.DataFrame:
    """Write table and picture into `folder`, and print the table."""
    table = teaching_table(prompts)
    table.to_csv(folder / TABLE_FILE)
    teaching_figure(prompts, [str(name) for name in table.index]).savefig(folder / PICTURE_FILE, dpi=120)
    shown = Table(box=SIMPLE_HEAD)
    for head in ("reward", "variance (95 %)", "GRPOVI", "gain", "constant", "accuracy", "time", "GRPOVI"):
        shown.add_column(head, justify="left" if head == "reward" else "right")
    for name, row in table.iterrows():
        accuracy = "" if np.isnan(row["accuracy"]) else f"{row['accuracy']:.3f}"
        shown.add_row(
            str(name),
            f"{row['variance']:.3f} ({row['variance_low']:.3f} to {row['variance_high']:.3f})",
            f"{row['adjusted']:.3f}",
            f"{row['gain']:.2f}",
            f"{row['constant']:.0%}",
            accuracy,
            f"{row['time']:.2f}",
            f"{row['time_adjusted']:.2f}",
        )
    (console or Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH)).print(shown)
    return table
