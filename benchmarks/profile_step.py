"""Shows where the time of a training step goes: python benchmarks/profile_step.py DIR [DIR ...]; see README.md."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import matplotlib
import torch
from matplotlib.figure import Figure
from reporting import (
    checked_output,
    consoles,
    default_output,
    duration,
    machine,
    save_picture,
    titled_table,
    training_device,
)
from rich.console import Console
from step_result import at_least
from training_step import StepTimes, quiet, train
from workload import InputError, read_workload

from analysis.style import FAINT, INK, PALETTE, PAPER, RC
from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError

REST, BETWEEN = "rest", "between steps"
COLOURS = {
    keys.STEP_TIME_PREFILL: PALETTE[4],
    keys.STEP_TIME_DECODE: PALETTE[0],
    keys.STEP_TIME_REFERENCE: PALETTE[3],
    keys.STEP_TIME_REWARD: "#f0e442",  # the palette's yellow, which as an area stands out enough
    keys.STEP_TIME_ADJUSTMENT: INK,
    keys.STEP_TIME_FORWARD: PALETTE[2],
    keys.STEP_TIME_BACKWARD: PALETTE[1],
    keys.STEP_TIME_OPTIMIZER: PALETTE[5],
    REST: FAINT,
    BETWEEN: "#d0d7de",
}
MARK = "benchmarks/profile_step.py"
"""Stands in the metadata of every picture."""
LABELLED = 0.06
"""The share of the longest bar from which on a part's milliseconds fit inside it."""

Profile = Mapping[str, float]
"""Phases of `metric_keys.STEP_PHASES`, `REST` and `BETWEEN` -> seconds."""


def profile(scalars: Sequence[Mapping[str, float]], ends: Sequence[float]) -> Profile:
    """The parts of a step, which add up to the median time from the end of a step to the end of the next.

    Args:
        scalars: `step_time` and its phases, seconds, one mapping a step; the first step is left out.
        ends: when each of these steps ended, seconds.

    Returns:
        Each phase's median; what they leave of the median `step_time`; and what `step_time` leaves of the median time
        between two ends: data, metrics, logging.
    """
    step = median(of_step[keys.STEP_TIME] for of_step in scalars[1:])
    parts = {phase: median(of_step[phase] for of_step in scalars[1:]) for phase in keys.STEP_PHASES}
    parts[REST] = step - sum(parts.values())
    parts[BETWEEN] = median(end - begin for begin, end in pairwise(ends)) - step
    return parts


def label(part: str) -> str:
    """A part's name for people."""
    return part.removeprefix(f"{keys.STEP_TIME}/")


def print_profiles(console: Console, profiles: Mapping[str, Profile], steps: int) -> None:
    """One line a part, two columns a workload: milliseconds and share."""
    columns = [column for name in profiles for column in (f"{name}\nms", "\nshare")]
    table = titled_table("Where a training step's time goes", "", *columns)
    totals = {name: sum(parts.values()) for name, parts in profiles.items()}
    for part in COLOURS:
        cells = [(parts[part], parts[part] / totals[name]) for name, parts in profiles.items()]
        table.add_row(label(part), *(text for s, share in cells for text in (f"{s * 1e3:,.2f}", f"{share:.1%}")))
    table.add_section()
    table.add_row("end to end", *(text for total in totals.values() for text in (f"{total * 1e3:,.2f}", "100.0%")))
    console.print(
        table,
        f"Medians over {steps - 1} step(s), without the first. {REST}: what the phases leave "
        f"of the median step; {BETWEEN}: from its end to the next one's beginning (data, metrics, logging).",
        sep="\n",
    )


@matplotlib.rc_context(RC)
def profile_figure(profiles: Mapping[str, Profile]) -> Figure:
    """One bar a workload, its parts from left to right in the order of a step."""
    figure = Figure(figsize=(7.2, 1.7 + 0.5 * len(profiles)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title("Where a training step's time goes", pad=8)
    axes.set_xlabel("milliseconds")
    axes.grid(True, axis="x", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    names = list(profiles)
    left = dict.fromkeys(names, 0.0)
    longest = max(sum(parts.values()) for parts in profiles.values()) * 1e3
    for part, colour in COLOURS.items():
        # A rest of medians can come out a little below nothing; a bar cannot.
        widths = [max(profiles[name][part] * 1e3, 0.0) for name in names]
        texts = [f"{width:,.0f}" if width > LABELLED * longest else "" for width in widths]
        bars = axes.barh(names, widths, left=list(left.values()), color=colour, height=0.62, label=label(part))
        axes.bar_label(bars, texts, label_type="center", color=_ink_on(colour), fontsize=8.0)
        left = {name: left[name] + width for name, width in zip(names, widths, strict=True)}
    for row, name in enumerate(names):
        axes.text(left[name], row, f" {duration(sum(profiles[name].values()))}", va="center", fontweight="bold")
    axes.set_xlim(0.0, longest * 1.1)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower left", ncols=5, frameon=False, fontsize=8.5, handlelength=1.2)
    return figure


def _ink_on(colour: str) -> str:
    """Black or white, whichever can be read on `colour`, an #rrggbb."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER


def run(arguments: argparse.Namespace) -> None:
    """Trains on each workload, prints the table and writes the picture."""
    out, progress = consoles()
    output = checked_output(arguments.output or default_output("profile", ".svg"), "picture", MARK)
    workloads = {str(folder): read_workload(folder) for folder in arguments.directories}
    if len({work.folder.name for work in workloads.values()}) == len(workloads):
        workloads = {work.folder.name: work for work in workloads.values()}
    torch.set_num_threads(arguments.threads)
    quiet()
    out.print(machine(arguments.threads), f"trained on: {training_device()}", sep="\n")
    profiles: dict[str, Profile] = {}
    for name, work in workloads.items():
        progress.print(f"{name}: {arguments.steps} steps")
        times = StepTimes((keys.STEP_TIME, *keys.STEP_PHASES))
        train(work, arguments.steps, arguments.seed, times)
        profiles[name] = profile(times.scalars, times.ends)
    print_profiles(out, profiles, arguments.steps)
    out.print(save_picture(profile_figure(profiles), output, MARK))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for arguments, workloads or files that do not do."""
    parser = argparse.ArgumentParser(description="Shows where the time of a training step goes.")
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="workloads, one bar each")
    parser.add_argument("--steps", type=int, default=8, help="training steps, the first of which is left out")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling and of the prompts' order")
    parser.add_argument("--output", type=Path, help="SVG or PNG; default runs/benchmarks/profile_<date>_<time>.svg")
    arguments = parser.parse_args(argv)
    try:
        at_least(arguments, steps=2, threads=1, seed=0)
        run(arguments)
    except (InputError, UserError, OSError) as error:
        print(f"profile_step.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
