"""Measures the reward variance increase: python benchmarks/adjustment.py [--quick] [--study DIR]; see README.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from adjustment_measurements import (
    LONG,
    QUICK,
    TOLERANCE,
    Disagreement,
    Row,
    Sizes,
    batch_rows,
    loop_rows,
    paper_rows,
    study_rows,
)
from reporting import checked_output, consoles, default_output, duration, machine, titled_table, write_rows
from rich.console import Console

from analysis import ReportError
from grpovi_lightning.errors import UserError

PROMISED_RATIO, PROMISED_SHARE = 20, 0.002


def print_paper(console: Console, rows: Sequence[Row]) -> None:
    """One line an n, as in the paper; the time as a multiple of the closed form's in brackets."""
    methods = ("enumeration", "one pass", "closed form")
    table = titled_table("The paper's Table 1: one group of n rewards", "n", "optimal value", *methods)
    for case in dict.fromkeys(row.case for row in rows):
        found = {row.method: row for row in rows if row.case == case}
        cells = [f"{duration(found[m].seconds)} ({found[m].ratio:,.1f})" if m in found else "" for m in methods]
        shown = found["closed form"]
        table.add_row(f"{shown.group_size:,}", f"{shown.optimal_value:.4f}", *cells)
    console.print(
        table,
        f"Optimal values agree to {TOLERANCE:.0e}. Seconds: medians of up to {max(row.repeats for row in rows)} calls, "
        f"methods in turn; calls of over {LONG:g} s are timed once. In brackets: multiples of the closed form. The "
        "searches compute each point anew with NumPy, so their constant factors are not the paper's.",
        sep="\n",
    )


def print_batches(console: Console, rows: Sequence[Row]) -> None:
    """One line a shape and kind of rewards."""
    table = titled_table("increase_variance on a batch [P, G]", "shape", "rewards", "merge ties", "split ties")
    for merge, split in zip(rows[::2], rows[1::2], strict=True):
        shape = f"{merge.groups:,} x {merge.group_size:,}"
        table.add_row(shape, merge.case, duration(merge.seconds), duration(split.seconds))
    console.print(table, f"Medians of {rows[0].repeats} calls, the two ways in turn.")


def print_loop(console: Console, rows: Sequence[Row], *, full: bool) -> None:
    """The two times and the promise."""
    loop, closed = rows
    promised = f"promised: at least {PROMISED_RATIO}" if full else "the promise is about 1,024 x 16, not this size"
    table = titled_table("One call against a Python loop, in turn", "shape", "loop of one pass", "closed form", "ratio")
    shape = f"{loop.groups:,} x {loop.group_size:,}"
    table.add_row(shape, duration(loop.seconds), duration(closed.seconds), f"{loop.ratio:.0f}")
    console.print(table, f"Ratio of the medians over {loop.repeats} rounds; {promised}.")


def print_study(console: Console, rows: Sequence[Row], study: str) -> None:
    """One line an arm, and the promise."""
    table = titled_table(f"Share of a training step in {study}", "arm", "steps", "adjustment", "share")
    for row in rows:
        table.add_row(row.case, f"{row.repeats:,}", duration(row.seconds), f"{row.ratio:.4%}")
    console.print(table, f"Medians over the steps of all seeds; promised: under {PROMISED_SHARE:.1%}.")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints each table when it is ready, and writes the CSV at the end."""
    out, progress = consoles()
    output = checked_output(arguments.output or default_output("adjustment", ".csv"), "table", ",".join(Row._fields))
    of_study = study_rows(arguments.study) if arguments.study else []
    torch.set_num_threads(arguments.threads)  # the searches' dot products are too short for NumPy's own threads
    sizes = QUICK if arguments.quick else Sizes()

    out.print(machine(arguments.threads))
    rows = list(paper_rows(sizes, arguments.seed, progress.print))
    print_paper(out, rows)
    batches = list(batch_rows(sizes, arguments.seed))
    print_batches(out, batches)
    progress.print(f"a loop over {sizes.loop[0]:,} groups, {sizes.rounds + 1} times")
    loop = list(loop_rows(sizes, arguments.seed))
    print_loop(out, loop, full=sizes.loop == Sizes().loop)
    if of_study:
        print_study(out, of_study, arguments.study)
    else:
        out.print("Share of a training step: run `make study`, then this script with `--study runs/quickstart`.")
    out.print(write_rows(output, Row._fields, [*rows, *batches, *loop, *of_study]))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where the methods disagree; 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(description="Measures the reward variance increase.")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: a few seconds")
    parser.add_argument("--study", metavar="DIR", help="a study whose runs tell the share of a training step")
    parser.add_argument("--output", type=Path, help="the CSV; default runs/benchmarks/adjustment_<date>_<time>.csv")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1, as the searches)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rewards and weights (default: 0)")
    arguments = parser.parse_args(argv)
    try:
        for name, least in (("threads", 1), ("seed", 0)):
            if getattr(arguments, name) < least:
                raise UserError(f"--{name}: got {getattr(arguments, name)}, expected at least {least}")
        run(arguments)
    except (Disagreement, UserError, ReportError, OSError) as error:
        print(f"adjustment.py: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, Disagreement) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
