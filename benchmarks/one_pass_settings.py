"""Passive, active, deployment on synthetic rewards: python benchmarks/one_pass_settings.py [--quick]; see README.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from one_pass_settings_figure import settings_figure
from one_pass_settings_runs import QUICK, SETTINGS, Row, Sizes
from one_pass_settings_tables import Results, print_tables
from reporting import checked_output, consoles, default_output, machine, save_picture, write_rows

from grpovi_lightning.errors import UserError

MARK = "benchmarks/one_pass_settings.py"
"""Stands in the metadata of every picture."""
QUICK_SEEDS, SEEDS = 3, 20


def run(arguments: argparse.Namespace) -> None:
    """Runs all seeds of all settings, prints the tables, and writes the CSV and the picture beside it."""
    out, progress = consoles()
    output = arguments.output or default_output("one_pass_settings", ".csv")
    output = checked_output(output, "table", ",".join(Row._fields))
    picture = checked_output(output.with_suffix(".svg"), "picture", MARK)
    sizes = QUICK if arguments.quick else Sizes()
    seeds = range(arguments.seeds or (QUICK_SEEDS if arguments.quick else SEEDS))
    torch.set_num_threads(1)  # the matrices are too small for more
    out.print(machine(1))
    rows: list[Row] = []
    for setting, of_seed in SETTINGS.items():
        for seed in seeds:
            progress.print(f"{setting}: seed {seed}")
            rows += of_seed(sizes, seed)
    results = Results(rows)
    print_tables(out, results, sizes, seeds)
    out.print(save_picture(settings_figure(results), picture, MARK))
    out.print(write_rows(output, Row._fields, rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(description="The three settings of one-pass reward modelling, on synthetic data.")
    parser.add_argument("--quick", action="store_true", help=f"small sizes and {QUICK_SEEDS} seeds: a few seconds")
    parser.add_argument("--seeds", type=int, help=f"how many, from 0 on (default: {SEEDS})")
    parser.add_argument(
        "--output", type=Path, help="the CSV; default runs/benchmarks/one_pass_settings_<date>_<time>.csv"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.seeds is not None and arguments.seeds < 2:
            raise UserError(f"--seeds: got {arguments.seeds}, expected at least 2; one has no interval")
        run(arguments)
    except (UserError, OSError) as error:
        print(f"one_pass_settings.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
