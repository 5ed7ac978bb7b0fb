"""Show where the time of a training step goes: python benchmarks/profile_step.py DIR [DIR ...]; see README.md."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from command import run_command
from matplotlib.figure import Figure
from reporting import consoles, duration, machine, output_path, print_table, save_picture, training_device
from rich.console import Console
from training_step import StepTimes, quiet, train
from workload import LEAST, read_workload

from analysis.style import FAINT, INK, PALETTE, PAPER, RC
from grpovi_lightning import metric_keys as keys
from grpovi_lightning.allocator import keep_large_blocks
from grpovi_lightning.errors import UserError

REST, BETWEEN = "rest", "between steps"
_FIRST, _LAST = ((PALETTE[i] for i in order) for order in ((4, 0, 3), (2, 1, 5)))
_ALL = (*_FIRST, "#f0e442", INK, *_LAST, FAINT, "#d0d7de")  # the palette's yellow stands out enough as an area
COLOURS = dict(zip((*keys.STEP_PHASES, REST, BETWEEN), _ALL, strict=True))
LIGHT = (REST, BETWEEN, keys.STEP_TIME_PREFILL, keys.STEP_TIME_REFERENCE, keys.STEP_TIME_REWARD)
"""Parts on whose colour black is easier to read than white."""


def profile(scalars: Sequence[Mapping[str, float]], ends: Sequence[float]) -> pd.Series:
    """Return the median seconds of each phase and of what is left, which add up to the median from end to end.

    Args:
        scalars: `step_time` and its phases, seconds, one mapping a step; the first step is left out.
        ends: when each of these steps ended, seconds.
    """
    medians = pd.DataFrame(scalars[1:]).median()
    parts, step = medians.reindex(list(keys.STEP_PHASES)), float(medians.loc[keys.STEP_TIME])
    left = pd.Series({REST: step - parts.sum(), BETWEEN: float(np.median(np.diff(ends))) - step})
    return pd.concat([parts, left])


def print_profiles(console: Console, profiles: pd.DataFrame) -> None:
    """Print a line a part, two columns a workload: milliseconds and share."""
    totals = profiles.sum()
    rows: list[list[str] | None] = []
    for part in COLOURS:
        cells = ((f"{s * 1e3:,.2f}", f"{s / totals[name]:.1%}") for name, s in profiles.loc[part].items())
        rows.append([part.split("/")[-1], *(text for pair in cells for text in pair)])
    rows += [None, ["end to end", *(text for total in totals for text in (f"{total * 1e3:,.2f}", "100.0%"))]]
    columns = [column for name in profiles for column in (f"{name}\nms", "\nshare")]
    note = f"Medians without the first step. {REST}: what the phases leave; {BETWEEN}: data, metrics, logging."
    print_table(console, "Where a training step's time goes", ["", *columns], rows, note)


@matplotlib.rc_context(RC)
def profile_figure(profiles: pd.DataFrame) -> Figure:
    """Draw one bar a workload, its parts from left to right in the order of a step."""
    figure = Figure(figsize=(7.2, 1.7 + 0.5 * profiles.shape[1]), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("Where a training step's time goes", pad=8)
    axes.set_xlabel("milliseconds")
    axes.grid(True, axis="x", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    widths = (profiles * 1e3).clip(lower=0.0)  # a rest of medians can come out a little below nothing; a bar cannot
    left = widths.cumsum() - widths
    for part, colour in COLOURS.items():
        bars = axes.barh(
            list(widths), widths.loc[part], left=left.loc[part], color=colour, height=0.62, label=part.split("/")[-1]
        )
        texts = [f"{width:,.0f}" if width > 0.06 * widths.sum().max() else "" for width in widths.loc[part]]
        axes.bar_label(bars, texts, label_type="center", color=INK if part in LIGHT else PAPER, fontsize=8.0)
    for row, (width, total) in enumerate(zip(widths.sum().tolist(), profiles.sum().tolist(), strict=True)):
        axes.text(width, row, f" {duration(total)}", va="center", fontweight="bold")
    axes.set_xlim(0.0, widths.sum().max() * 1.1)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower left", ncols=5, frameon=False, fontsize=8.5, handlelength=1.2)
    return figure


def run(arguments: argparse.Namespace) -> None:
    """Train on each workload, print the table and write the picture."""
    keep_large_blocks()  # as the command `grpovi` does
    out, progress = consoles()
    workloads = [read_workload(folder) for folder in arguments.directories]
    torch.set_num_threads(arguments.threads)
    quiet()
    out.print(machine(arguments.threads), f"trained on: {training_device()}", sep="\n")
    profiles = {}
    for work in workloads:
        progress.print(f"{work.folder}: {arguments.steps} steps")
        times = StepTimes((keys.STEP_TIME, *keys.STEP_PHASES))
        train(work, arguments.steps, arguments.seed, times)
        profiles[work.folder.name] = profile(times.scalars, times.ends)
    print_profiles(out, pd.DataFrame(profiles))
    out.print(save_picture(profile_figure(pd.DataFrame(profiles)), output_path("profile")))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for arguments, workloads or files that do not do."""
    parser = argparse.ArgumentParser(prog="profile_step.py", description="Show where the time of a training step goes.")
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="workloads, one bar each")
    parser.add_argument("--steps", type=int, default=8, help="training steps, the first of which is left out")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling and of the prompts' order")
    return run_command(parser, run, argv, least=LEAST, refused=(UserError,))


if __name__ == "__main__":
    sys.exit(main())
