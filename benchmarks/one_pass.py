"""Compares one-pass reward modelling with refits and SGD: python benchmarks/one_pass.py [--quick]; see README.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from one_pass_figure import one_pass_figure
from one_pass_synthetic import (
    COLD,
    CONSTANT,
    CONSTANT_RATES,
    EARLY,
    FALLING,
    FALLING_RATES,
    IMPLICIT,
    LOOSE,
    LOOSEST,
    ONE_PASS,
    QUICK,
    ROUND,
    THETA_NORM,
    TIGHT,
    WARM,
    WINDOW,
    Row,
    Sizes,
    Track,
    best,
    default,
    measure,
    of,
    problem,
    spread,
)
from reporting import (
    checked_output,
    consoles,
    default_output,
    duration,
    machine,
    save_picture,
    titled_table,
    write_rows,
)
from rich.console import Console

from grpovi_lightning.errors import TrainingError, UserError

MARK = "benchmarks/one_pass.py"
"""Stands in the metadata of every picture."""
PROMISED_GAP, PROMISED_GROWTH, PROMISED_RATIO = 0.002, 0.1, 20


def print_learned(console: Console, tracks: Sequence[Track], bayes: np.ndarray) -> None:
    """One line an arm: what is learned at the end; of SGD the best rate only."""
    table = titled_table("Held-out pairs, after all rounds", "", "", "cross-entropy", "accuracy")
    for track in _tabulated(tracks):
        learned = spread(track.cross_entropy[:, -1], 4), spread(track.accuracy[:, -1], 4)
        table.add_row(track.arm.name, track.arm.setting, *learned)
    table.add_row("the true reward", "", spread(bayes[:, 0], 4), spread(bayes[:, 1], 4))
    console.print(
        table,
        f"Mean ± standard deviation over {len(bayes)} seeds. The rate of SGD is the one with the lowest mean "
        "cross-entropy on these same pairs, which flatters it: constant from "
        f"{_listed(CONSTANT_RATES)}, 1/sqrt(t) from {_listed(FALLING_RATES)}.",
        sep="\n",
    )


def print_cost(console: Console, tracks: Sequence[Track], sizes: Sizes) -> None:
    """One line an arm: the time of a round early and late, all rounds, and the state."""
    columns = (f"round at {EARLY:,}", f"round at {sizes.pairs:,}", "all rounds", f"KiB at {EARLY:,}", "at the end")
    table = titled_table("Time and memory", "", "", *columns)
    for track in _tabulated(tracks):
        early, late = (duration(track.round_seconds(t).mean().item()) for t in (EARLY, sizes.pairs))
        kept = [track.state_bytes[0, (track.samples <= t).sum() - 1] / 1024 for t in (EARLY, sizes.pairs)]
        total = duration(track.seconds.sum(axis=1).mean().item())
        table.add_row(track.arm.name, track.arm.setting, early, late, total, *(f"{value:,.1f}" for value in kept))
    console.print(
        table,
        f"Processor time, one thread. A round: the median of the last {WINDOW} that end there; all rounds: their sum. "
        "Means over the seeds.",
        sep="\n",
    )


def print_promises(console: Console, tracks: Sequence[Track], *, full: bool) -> None:
    """What was promised of the one-pass estimator, for each lambda against the refit with the same."""
    promised = "promised" if full else "promised at the full size"
    sgd = min((best(tracks, name) for name in (CONSTANT, FALLING)), key=lambda track: track.cross_entropy[:, -1].mean())
    loose, tight = default(tracks, LOOSE), default(tracks, WARM)
    columns = (
        "minus\nthe refit",
        "minus\nSGD",
        "round\nlate / early",
        "refits\n/ one pass",
        "loose refits\n/ one pass",
    )
    table = titled_table("The one-pass estimator", "", *columns)
    for track, refit in zip(of(tracks, ONE_PASS), of(tracks, WARM), strict=True):
        refits = [refit, loose] if refit is tight else [refit]
        table.add_row(
            track.arm.setting,
            spread(track.cross_entropy[:, -1] - refit.cross_entropy[:, -1], 4),
            spread(track.cross_entropy[:, -1] - sgd.cross_entropy[:, -1], 4),
            spread(track.round_seconds(int(track.samples[-1])) / track.round_seconds(EARLY), 3),
            *(spread(other.seconds.sum(axis=1) / track.seconds.sum(axis=1), 1) for other in refits),
        )
    change = np.abs(loose.cross_entropy - tight.cross_entropy)
    console.print(
        table,
        f"Differences of held-out cross-entropy, seed by seed: to the warm refit of the same lam ({promised}: at most "
        f"{PROMISED_GAP}), to {sgd.arm.name}, {sgd.arm.setting} ({promised}: below 0). The time of a round at the end "
        f"over that at {EARLY:,} ({promised}: within {PROMISED_GROWTH:.0%} of 1). The time of all warm refits over "
        f"that of all one-pass rounds ({promised}: at least {PROMISED_RATIO}): a refit ends at a gradient of "
        f"{TIGHT:.0e} of its bound, a loose one at {LOOSEST:.0e}, which changes the held-out cross-entropy by at most "
        f"{change[:, -1].max():.1e} after all rounds, and {change.max():.1e} after any.",
        sep="\n",
    )


def _tabulated(tracks: Sequence[Track]) -> list[Track]:
    """Every setting of the methods with a lambda, and the best rate of each SGD."""
    regularised = [track for name in (ONE_PASS, IMPLICIT, WARM, COLD, LOOSE) for track in of(tracks, name)]
    return regularised + [best(tracks, name) for name in (CONSTANT, FALLING)]


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables, and writes the CSV and the picture beside it."""
    out, progress = consoles()
    output = checked_output(arguments.output or default_output("one_pass", ".csv"), "table", ",".join(Row._fields))
    picture = checked_output(output.with_suffix(".svg"), "picture", MARK)
    sizes = QUICK if arguments.quick else Sizes()
    torch.set_num_threads(1)
    problems = [problem(sizes, arguments.seed + i) for i in range(sizes.n_seeds)]
    bayes = np.array([task.score(task.theta) for task in problems])
    out.print(
        machine(threads=1),
        f"{sizes.dim} features of a completion, x / ||x|| with x_j normal of variance 1/j; ||theta|| = {THETA_NORM:g}; "
        f"{sizes.pairs:,} pairs in rounds of {ROUND}, {sizes.held_out:,} held out; {sizes.n_seeds} seeds",
        sep="\n",
    )
    tracks = measure(problems, progress.print)
    print_learned(out, tracks, bayes)
    print_cost(out, tracks, sizes)
    print_promises(out, tracks, full=not arguments.quick)
    rows = [row for track in tracks for row in track.rows(arguments.seed)]
    out.print(write_rows(output, Row._fields, rows))
    cross_entropy, accuracy = bayes.mean(axis=0).tolist()
    out.print(save_picture(one_pass_figure(tracks, (cross_entropy, accuracy)), picture, MARK))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where a refit does not converge; 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(description="Compares one-pass reward modelling with refits and SGD.")
    parser.add_argument("--quick", action="store_true", help="small sizes: a few seconds instead of minutes")
    parser.add_argument(
        "--output",
        type=Path,
        help="the CSV, beside which the picture goes as .svg; default runs/benchmarks/one_pass_<date>_<time>.csv",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed of the problems (default: 0)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.seed < 0:
            raise UserError(f"--seed: got {arguments.seed}, expected at least 0")
        run(arguments)
    except (TrainingError, UserError, OSError) as error:
        print(f"one_pass.py: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
