"""Measure the reward variance increase: python benchmarks/adjustment.py [--quick] [--study DIR]; see README.md."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from command import run_command
from numpy.typing import NDArray
from reporting import consoles, duration, machine, output_path, print_table, write_table
from rich.console import Console

from analysis import ReportError, load_runs
from grpovi_lightning.adjustment import increase_variance
from grpovi_lightning.adjustment.reference import enumeration_search, one_pass_search
from grpovi_lightning.errors import UserError
from grpovi_lightning.metric_keys import STEP_TIME, STEP_TIME_ADJUSTMENT

LOWER, UPPER = 0.0, 1.0
TOLERANCE = 1e-10  # how far the optimal values of one instance, and the weighted means before and after, may lie apart
ENUMERATED_UP_TO = 1_000
LONG = 2.0  # seconds; a call of the paper's table that takes longer is timed once
PROMISED_RATIO, PROMISED_SHARE = 20, 0.002


class Sizes(NamedTuple):
    """What is measured, and in how many rounds."""

    paper: Sequence[int] = (10, 50, 100, 500, 1_000, 5_000, 10_000)
    batches: Sequence[tuple[int, int]] = ((1_024, 8), (1_024, 64), (64, 4_096))
    loop: tuple[int, int] = (1_024, 16)
    rounds: int = 9
    batch_rounds: int = 31


QUICK = Sizes(paper=(10, 50, 100), batches=((64, 8), (8, 64)), loop=(64, 16), rounds=3, batch_rounds=3)
COLUMNS = ["table", "case", "method", "groups", "group_size", "seconds", "repeats", "optimal_value"]
COLUMNS += ["ratio", "ratio_to"]
Row = tuple[str, str, str, int | None, int | None, float, int, float | None, float | None, str | None]
"""One measurement, one line of the CSV; README.md says what the columns mean."""
Timing = tuple[Any, float, int]  # what a method returned, the median seconds of its repeats, and how many they were


class Disagreement(Exception):
    """Two methods solve one instance differently: the times mean nothing."""


def instance(n_groups: int, group_size: int, seed: int) -> tuple[NDArray, NDArray]:
    """Return rewards uniform in [0, 1) and weights that sum to 1, [P, G] each, the same for one seed and shape."""
    generator = np.random.default_rng([seed, n_groups, group_size])
    rewards = generator.random((n_groups, group_size))
    weights = 1.0 - generator.random((n_groups, group_size))  # in (0, 1]
    return rewards, weights / weights.sum(axis=1, keepdims=True)


def closed_form(rewards: NDArray, weights: NDArray, ties: Literal["merge", "split"] = "merge") -> Callable[[], NDArray]:
    """Return a call of `increase_variance` on tensors that are ready, as they are in training; it gives [P, G]."""
    values, log_weights = torch.from_numpy(rewards), torch.from_numpy(weights).log()
    return lambda: increase_variance(values, log_weights, lower=LOWER, upper=UPPER, ties=ties).numpy()


def measure(methods: Mapping[str, Callable[[], Any]], rounds: int, once_above: float = math.inf) -> dict[str, Timing]:
    """Time the methods in turn, so that a change of the machine's load meets all of them.

    The first call of each is not counted, unless it takes over `once_above` seconds: then it is the only one.
    """

    def timed(method: Callable[[], Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        return method(), time.perf_counter() - start

    first = {name: timed(method) for name, method in methods.items()}
    repeated = {name: method for name, method in methods.items() if first[name][1] <= once_above}
    rows = [{name: timed(method)[1] for name, method in repeated.items()} for _ in range(rounds)]
    seconds = {name: [row[name] for row in rows] if name in repeated else [first[name][1]] for name in methods}
    return {name: (first[name][0], float(np.median(of)), len(of)) for name, of in seconds.items()}


def optimal_values(case: str, rewards: NDArray, weights: NDArray, found: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return the objective sum p_i z_i^2 of each method's solution [P, G], for each group: [P].

    Raises:
        Disagreement: a solution leaves the range or the weighted mean, or the values of a group differ.
    """
    for method, z in found.items():
        moved = np.abs((weights * (z - rewards)).sum(axis=1)).max()
        outside = max(LOWER - z.min(), z.max() - UPPER)
        if not max(moved, outside) <= TOLERANCE:  # also where it is NaN
            by = f"moves the weighted mean by {moved:.1e} and leaves the range by {outside:.1e}"
            raise Disagreement(f"{case}: {method} {by}, expected at most {TOLERANCE:.0e}")
    values = {method: (weights * z**2).sum(axis=1) for method, z in found.items()}
    spread = np.ptp(np.stack(list(values.values())), axis=0)
    if not spread.max() <= TOLERANCE:
        listed = ", ".join(f"{method} {value[int(spread.argmax())]:.12g}" for method, value in values.items())
        raise Disagreement(f"{case}: the optimal values differ by {spread.max():.1e}, got {listed}")
    return values


def paper_rows(sizes: Sizes, seed: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Yield the paper's Table 1: one group of n, by enumeration, one pass and the closed form."""
    for n in sizes.paper:
        rewards, weights = instance(1, n, seed)
        group = (rewards[0], weights[0], LOWER, UPPER)
        methods: dict[str, Callable[[], NDArray]] = {}
        if n <= ENUMERATED_UP_TO:
            methods["enumeration"] = lambda group=group: enumeration_search(*group)[0][None]
        methods["one pass"] = lambda group=group: one_pass_search(*group)[0][None]
        methods["closed form"] = closed_form(rewards, weights)
        say(f"n = {n:,}" + (", up to a minute" if "enumeration" in methods and n >= 500 else ""))
        yield from compared("paper", f"n = {n}", (rewards, weights), measure(methods, sizes.rounds, once_above=LONG))


def loop_rows(sizes: Sizes, seed: int) -> Iterator[Row]:
    """Yield a batch in one call against a Python loop of the one-pass search over its groups."""
    rewards, weights = instance(*sizes.loop, seed)

    def loop() -> NDArray:
        return np.stack([one_pass_search(r, p, LOWER, UPPER)[0] for r, p in zip(rewards, weights, strict=True)])

    timings = measure({"loop of one pass": loop, "closed form": closed_form(rewards, weights)}, sizes.rounds)
    yield from compared("loop", "{} x {}".format(*sizes.loop), (rewards, weights), timings)


def compared(table: str, case: str, problem: tuple[NDArray, NDArray], timings: dict[str, Timing]) -> Iterator[Row]:
    """Yield a row a method, with the time as a multiple of the closed form's, once the optimal values agree."""
    values = optimal_values(f"{table}, {case}", *problem, {name: timing[0] for name, timing in timings.items()})
    for name, (_, seconds, repeats) in timings.items():
        ratio = seconds / timings["closed form"][1]
        value = float(values[name].mean())
        groups, group_size = problem[0].shape
        yield table, case, name, groups, group_size, seconds, repeats, value, ratio, "closed form"


def batch_rows(sizes: Sizes, seed: int) -> Iterator[Row]:
    """Yield whole batches, with both ways to treat ties, without and with ties to treat."""
    for shape in sizes.batches:
        drawn, weights = instance(*shape, seed)
        for case, rewards in {"all distinct": drawn, "tenths": drawn.round(1)}.items():
            methods = {"merge": closed_form(rewards, weights), "split": closed_form(rewards, weights, "split")}
            for ties, (_, seconds, repeats) in measure(methods, sizes.batch_rounds).items():
                yield "batches", case, ties, *shape, seconds, repeats, None, None, None


def study_rows(study: str) -> Iterator[Row]:
    """Yield the adjustment's share of a training step, for each arm the median over the steps of its runs."""
    runs = load_runs(study)
    times = runs[runs["metric"].isin([STEP_TIME, STEP_TIME_ADJUSTMENT])]
    steps = times.pivot_table(index=["arm", "run", "step"], columns="metric", values="value")
    steps = steps.reindex(columns=[STEP_TIME, STEP_TIME_ADJUSTMENT]).dropna()
    if steps.empty:
        raise UserError(f"{study}: got no step with {STEP_TIME_ADJUSTMENT} and {STEP_TIME}, expected a study's runs")
    steps["share"] = steps[STEP_TIME_ADJUSTMENT] / steps[STEP_TIME]
    for arm, logged in steps.groupby(level="arm"):
        part, share = (float(np.median(logged[name])) for name in (STEP_TIME_ADJUSTMENT, "share"))
        yield "study", str(arm), "adjustment", None, None, part, len(logged), None, share, "training step"


def print_tables(console: Console, frame: pd.DataFrame, study: str | None) -> None:
    """Print a table for each kind of measurement."""
    tables = {str(name): part for name, part in frame.groupby("table")}
    methods = ("enumeration", "one pass", "closed form")
    rows = []
    for n, part in tables["paper"].groupby("group_size"):
        found = part.set_index("method")
        cells = [f"{duration(found.seconds[m])} ({found.ratio[m]:,.1f})" if m in found.index else "" for m in methods]
        rows.append([f"{n:,}", f"{found.optimal_value['closed form']:.4f}", *cells])
    note = f"Medians; optimal values agree to {TOLERANCE:.0e}. In brackets: multiples of the closed form."
    print_table(console, "The paper's Table 1: one group of n rewards", ("n", "optimal value", *methods), rows, note)

    by_ties = tables["batches"].pivot_table("seconds", ["groups", "group_size", "case"], "method", sort=False)
    rows = [[f"{p:,} x {g:,}", case, *map(duration, of)] for (p, g, case), *of in by_ties.itertuples()]
    print_table(console, "increase_variance on a batch [P, G]", ("shape", "rewards", "merge", "split"), rows)

    loop, closed = tables["loop"].to_dict("records")
    row = [loop["case"], duration(loop["seconds"]), duration(closed["seconds"]), f"{loop['ratio']:.0f}"]
    note = f"Ratio of the medians; promised for 1,024 x 16: at least {PROMISED_RATIO}."
    columns = ("shape", "loop of one pass", "closed form", "ratio")
    print_table(console, "One call against a Python loop, in turn", columns, [row], note)
    if study:
        rows = [
            [r["case"], f"{r['repeats']:,}", duration(r["seconds"]), f"{r['ratio']:.4%}"]
            for r in tables["study"].to_dict("records")
        ]
        note = f"Medians over the steps of all seeds; promised: under {PROMISED_SHARE:.1%}."
        columns = ("arm", "steps", "adjustment", "share")
        print_table(console, f"Share of a training step in {study}", columns, rows, note)
    else:
        console.print("Share of a training step: run `make study`, then this script with `--study runs/quickstart`.")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables and write the CSV."""
    out, progress = consoles()
    of_study = list(study_rows(arguments.study)) if arguments.study else []
    torch.set_num_threads(arguments.threads)  # the searches' dot products are too short for NumPy's own threads
    sizes = QUICK if arguments.quick else Sizes()
    out.print(machine(arguments.threads))
    rows = [*paper_rows(sizes, arguments.seed, progress.print), *batch_rows(sizes, arguments.seed)]
    rows += [*loop_rows(sizes, arguments.seed), *of_study]
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"groups": "Int64", "group_size": "Int64"})
    print_tables(out, frame, arguments.study)
    out.print(write_table(frame, output_path("adjustment")))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0; 1 where the methods disagree; 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(prog="adjustment.py", description="Measure the reward variance increase.")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: a few seconds")
    parser.add_argument("--study", metavar="DIR", help="a study whose runs tell the share of a training step")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1, as the searches)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rewards and weights (default: 0)")
    least = {"threads": 1, "seed": 0}
    return run_command(parser, run, argv, least=least, refused=(UserError, ReportError), failed=(Disagreement,))


if __name__ == "__main__":
    sys.exit(main())
