"""Compare one-pass reward modelling with refits and SGD: python benchmarks/one_pass.py [--quick]; see README.md."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import matplotlib
import pandas as pd
import torch
from command import run_command
from matplotlib.figure import Figure
from reporting import consoles, duration, label_axes, machine, output_path, print_table, save_picture, write_table
from rich.console import Console
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from analysis.style import INK, PALETTE, RC
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import online

ONE_PASS, IMPLICIT = "one-pass OMD", "implicit OMD"
WARM, COLD, LOOSE = "MLE refit, warm", "MLE refit, cold", "MLE refit, loose"
CONSTANT, FALLING = "SGD, constant", "SGD, 1/sqrt(t)"
LAMS = (0.1, 1.0, 10.0)
DEFAULT = "lam 1"  # stands for a method with a lambda where only one can be shown
TIGHT, LOOSEST = 1e-9, 1e-4
"""Tolerances of the refits: the default; and the loosest power of ten that changes cross-entropy by less than 1e-4."""
CONSTANT_RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
FALLING_RATES = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
ROUND = 32  # pairs
THETA_NORM = 23.0  # with it the reward's own cross-entropy on unseen pairs, the lowest possible, is about 0.53
WINDOW = 10  # the time of a round is the median over so many rounds that end there
EARLY = 400  # pairs after which the time of a round is compared with that at the end
COLOURS = dict(zip((ONE_PASS, WARM, CONSTANT, FALLING, IMPLICIT, COLD), PALETTE, strict=True)) | {LOOSE: PALETTE[1]}
DASHES = {IMPLICIT: "dashed", COLD: "dashed", FALLING: "dashed", LOOSE: "dotted"}

Tracks = dict[tuple[str, str], pd.DataFrame]  # (arm, setting) -> a row a seed and round, with the columns `COLUMNS`


class Sizes(NamedTuple):
    """How much is measured."""

    dim: int = 384
    pairs: int = 4_000
    held_out: int = 5_000
    n_seeds: int = 5


QUICK = Sizes(dim=12, pairs=480, held_out=300, n_seeds=2)
COLUMNS = ["arm", "setting", "seed", "samples", "seconds", "state_bytes", "cross_entropy", "accuracy"]
Row = tuple[str, str, int, int, float, int, float, float]
"""One round of one arm, one line of the CSV; README.md says what the columns mean."""


class Arm(NamedTuple):
    """A method with its setting, and how to make its estimator for D features."""

    name: str
    setting: str
    make: Callable[[int], online.PreferenceEstimator]


class Problem(NamedTuple):
    """Feature differences [T, D] and labels [T] to learn from, the same held out, and the reward [D] that labelled."""

    z: Tensor
    y: Tensor
    held_out_z: Tensor
    held_out_y: Tensor
    theta: Tensor

    def score(self, theta: Tensor) -> tuple[float, float]:
        """Return cross-entropy in nats, and accuracy, on the held-out pairs."""
        margins = self.held_out_z @ theta
        loss = binary_cross_entropy_with_logits(margins, self.held_out_y)
        return loss.item(), ((margins > 0) == (self.held_out_y > 0.5)).double().mean().item()


def problem(sizes: Sizes, seed: int) -> Problem:
    """Return comparisons of independent x / ||x||, x_j normal of variance 1/j; labels are 1 by sigmoid(z' theta)."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.arange(1, sizes.dim + 1, dtype=torch.float64) ** -0.5
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    n, t = sizes.pairs + sizes.held_out, sizes.pairs
    z = normalize(draw(n, sizes.dim) * deviations) - normalize(draw(n, sizes.dim) * deviations)
    theta = THETA_NORM * normalize(draw(sizes.dim), dim=0)
    y = (torch.rand(n, generator=generator, dtype=torch.float64) < torch.sigmoid(z @ theta)).double()
    return Problem(z[:t].clone(), y[:t].clone(), z[t:].clone(), y[t:].clone(), theta)


def arms() -> list[Arm]:
    """Return every method with every setting of its grid."""
    refit = partial(online.MaximumLikelihood, tolerance=TIGHT)
    kinds = {ONE_PASS: online.OnlineMirrorDescent, IMPLICIT: online.ImplicitMirrorDescent, WARM: refit}
    found = [Arm(name, f"lam {lam:g}", partial(kind, lam=lam)) for name, kind in kinds.items() for lam in LAMS]
    found.append(Arm(COLD, DEFAULT, partial(refit, lam=1.0, warm_start=False)))
    found.append(Arm(LOOSE, DEFAULT, partial(online.MaximumLikelihood, lam=1.0, tolerance=LOOSEST)))
    grids = ((CONSTANT, online.ConstantRate, CONSTANT_RATES), (FALLING, online.InverseSquareRootRate, FALLING_RATES))
    sgd = online.StochasticGradientDescent
    for name, kind, grid in grids:
        found += [Arm(name, f"rate {rate:g}", partial(sgd, rate=kind(rate))) for rate in grid]
    return found


def learn(arm: Arm, task: Problem, seed: int, pairs: int = ROUND) -> Iterator[Row]:
    """Learn all pairs, so many at a time; the seconds are the processor's, for the update alone."""
    arm.make(task.z.shape[1]).update(task.z[:ROUND], task.y[:ROUND])  # the first call of a kind takes longer
    estimator = arm.make(task.z.shape[1])
    for z, y in zip(task.z.split(pairs), task.y.split(pairs), strict=True):
        start = time.process_time()
        estimator.update(z, y)
        seconds = time.process_time() - start
        score = task.score(estimator.theta)
        yield arm.name, arm.setting, seed, estimator.n_pairs, seconds, estimator.state_bytes, *score


def by_seed(track: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column of an arm with one row a seed, one column a round, named by the pairs learned so far."""
    return track.pivot(index="seed", columns="samples", values=column)


def round_seconds(track: pd.DataFrame) -> pd.DataFrame:
    """Return the median time of the `WINDOW` rounds that end at each round, or of as many as there are, by seed."""
    return by_seed(track, "seconds").T.rolling(WINDOW, min_periods=1).median().T


def at(rounds: pd.DataFrame, samples: int) -> pd.Series:
    """Return the last round that ends at `samples` pairs or before, a value a seed."""
    return rounds.loc[:, :samples].iloc[:, -1]


def best(tracks: Tracks, name: str) -> tuple[str, str]:
    """Return the setting with the lowest mean cross-entropy at the end: chosen on the pairs it is judged by."""
    last = {arm: by_seed(track, "cross_entropy").iloc[:, -1].mean() for arm, track in tracks.items() if arm[0] == name}
    return min(last, key=lambda arm: last[arm])


def spread(values: pd.Series, digits: int) -> str:
    """Return mean and standard deviation over the seeds."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def print_learned_and_cost(console: Console, tracks: Tracks, bayes: pd.DataFrame) -> None:
    """Print what is learned at the end and what it costs, a line an arm; of SGD the best rate only."""
    sgd = [best(tracks, name) for name in (CONSTANT, FALLING)]
    shown = [arm for arm in tracks if arm[0] not in (CONSTANT, FALLING)] + sgd
    learned, cost = [], []
    for arm in shown:
        track = tracks[arm]
        scores = [by_seed(track, name).iloc[:, -1] for name in ("cross_entropy", "accuracy")]
        learned.append([*arm, *(spread(score, 4) for score in scores)])
        rounds, state, total = round_seconds(track), by_seed(track, "state_bytes") / 1024, by_seed(track, "seconds")
        times = [at(rounds, EARLY).mean(), rounds.iloc[:, -1].mean(), total.sum(axis=1).mean()]
        cost.append([*arm, *map(duration, times), *(f"{s.mean():,.1f}" for s in (at(state, EARLY), state.iloc[:, -1]))])
    learned.append(["the true reward", "", *(spread(pd.Series(bayes[name]), 4) for name in bayes)])
    note = f"Mean ± standard deviation over {len(bayes)} seeds; of SGD the rate that is best on these pairs."
    print_table(console, "Held-out pairs, after all rounds", ("", "", "cross-entropy", "accuracy"), learned, note)
    columns = ("", "", f"round at {EARLY:,}", "at the end", "all rounds", f"KiB at {EARLY:,}", "at the end")
    note = f"Processor time, one thread. A round: the median of the last {WINDOW}. Means over the seeds."
    print_table(console, "Time and memory", columns, cost, note)


def print_promises(console: Console, tracks: Tracks) -> None:
    """Print what was promised of the one-pass estimator, for each lambda against the refit with the same."""
    losses = {arm: by_seed(track, "cross_entropy") for arm, track in tracks.items()}
    total = {arm: by_seed(track, "seconds").sum(axis=1) for arm, track in tracks.items()}
    sgd = min((best(tracks, name) for name in (CONSTANT, FALLING)), key=lambda arm: losses[arm].iloc[:, -1].mean())
    rows = []
    for ours in (arm for arm in tracks if arm[0] == ONE_PASS):
        refits = [arm for arm in ((WARM, ours[1]), (LOOSE, ours[1])) if arm in tracks]
        gaps = [losses[ours].iloc[:, -1] - losses[other].iloc[:, -1] for other in (refits[0], sgd)]
        rounds = round_seconds(tracks[ours])
        grown = spread(rounds.iloc[:, -1] / at(rounds, EARLY), 3)
        ratios = [spread(total[refit] / total[ours], 1) for refit in refits]
        rows.append([ours[1], *(spread(gap, 4) for gap in gaps), grown, *ratios])
    change = (losses[LOOSE, DEFAULT] - losses[WARM, DEFAULT]).abs()
    note = (
        "Promised at the full size: cross-entropy at most 0.002 above the warm refit of the same lam, below that of "
        f"{sgd[0]}, {sgd[1]}; a round at the end takes 0.9 to 1.1 times one at {EARLY:,}; all refits take 20 times as "
        f"long. Refits end at a gradient of {TIGHT:.0e} of its bound, loose ones at {LOOSEST:.0e}: it changes "
        f"cross-entropy by at most {change.iloc[:, -1].max():.1e} at the end, {change.to_numpy().max():.1e} before."
    )
    columns = ("", "minus\nthe refit", "minus\nSGD", "round\nlate / early", "refits\n/ one pass", "loose\n/ one pass")
    print_table(console, "The one-pass estimator", columns, rows, note)


@matplotlib.rc_context(RC)
def one_pass_figure(tracks: Tracks, bayes: pd.DataFrame) -> Figure:
    """Draw mean and range over the seeds against the pairs learned from; `DEFAULT` and the best rates only."""
    drawn = [(name, DEFAULT) for name in (ONE_PASS, IMPLICIT, WARM, COLD, LOOSE)]
    drawn += [best(tracks, name) for name in (CONSTANT, FALLING)]
    panels: dict[tuple[str, str], Callable[[pd.DataFrame], pd.DataFrame]] = {
        ("Held-out cross-entropy", "nats"): lambda track: by_seed(track, "cross_entropy"),
        ("Held-out pair accuracy", "share of pairs"): lambda track: by_seed(track, "accuracy"),
        (f"Time of a round, median of {WINDOW}", "processor milliseconds"): lambda track: 1e3 * round_seconds(track),
        ("State kept between rounds", "MiB"): lambda track: by_seed(track, "state_bytes") / 2**20,
    }
    figure = Figure(figsize=(9.0, 6.8), layout="constrained")
    loss, accuracy, *logarithmic = grid = list(figure.subplots(2, 2).flat)
    for axes, ((title, unit), value) in zip(grid, panels.items(), strict=True):
        label_axes(axes, title, "pairs learned from", unit)
        for arm in drawn:
            values, colour, line = value(tracks[arm]), COLOURS[arm[0]], DASHES.get(arm[0], "solid")
            axes.fill_between(values.columns, values.min(), values.max(), color=colour, alpha=0.13, linewidth=0)
            axes.plot(values.columns, values.mean(), color=colour, linestyle=line, linewidth=1.6, label=", ".join(arm))
    for axes, name in ((loss, "cross_entropy"), (accuracy, "accuracy")):
        axes.axhline(bayes[name].mean(), color=INK, linestyle=(0, (1, 3)), linewidth=1.0, label="the true reward")
    first = [by_seed(tracks[arm], "cross_entropy").iloc[:, 0].max() for arm in drawn[:5]]  # SGD may start far above
    loss.set_ylim(bayes["cross_entropy"].mean() - 0.01, max(first) + 0.02)
    for axes in logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default is a formula, which stays source
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5, handlelength=3.2)
    return figure


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, and write the CSV and the picture beside it."""
    out, progress = consoles()
    sizes = QUICK if arguments.quick else Sizes()
    torch.set_num_threads(1)
    seeds = range(arguments.seed, arguments.seed + sizes.n_seeds)
    problems = {seed: problem(sizes, seed) for seed in seeds}
    bayes = pd.DataFrame([p.score(p.theta) for p in problems.values()], columns=["cross_entropy", "accuracy"])
    out.print(machine(threads=1), f"{sizes}; rounds of {ROUND} pairs; ||theta|| = {THETA_NORM:g}", sep="\n")
    rows: list[Row] = []
    for seed, task in problems.items():  # the arms in turn, so that a change of the machine's load meets all of them
        progress.print(f"problem {seed}: {len(arms())} arms")
        rows += [row for arm in arms() for row in learn(arm, task, seed)]
    frame, path = pd.DataFrame(rows, columns=COLUMNS), output_path("one_pass")
    tracks: Tracks = dict(iter(frame.groupby(["arm", "setting"], sort=False)))  # type: ignore[arg-type]
    print_learned_and_cost(out, tracks, bayes)
    print_promises(out, tracks)
    out.print(write_table(frame, path), save_picture(one_pass_figure(tracks, bayes), path), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0; 1 where a refit does not converge; 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(prog="one_pass.py", description="Compare one pass with refits and SGD.")
    parser.add_argument("--quick", action="store_true", help="small sizes: a few seconds instead of minutes")
    parser.add_argument("--seed", type=int, default=0, help="the first seed of the problems (default: 0)")
    return run_command(parser, run, argv, least={"seed": 0}, refused=(UserError,), failed=(TrainingError,))


if __name__ == "__main__":
    sys.exit(main())
