"""What adjustment.py measures: random groups, times taken in turn, one row a measurement."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from analysis import load_runs
from grpovi_lightning.adjustment import increase_variance
from grpovi_lightning.adjustment.reference import enumeration_search, one_pass_search
from grpovi_lightning.errors import UserError
from grpovi_lightning.metric_keys import STEP_TIME, STEP_TIME_ADJUSTMENT

LOWER, UPPER = 0.0, 1.0
TOLERANCE = 1e-10
"""How far the optimal values of one instance, and the weighted means before and after, may lie apart."""
ENUMERATED_UP_TO = 1_000
LONG = 2.0
"""Seconds; a call of the paper's table that takes longer is timed once."""


class Sizes(NamedTuple):
    """What is measured, and in how many rounds."""

    paper: Sequence[int] = (10, 50, 100, 500, 1_000, 5_000, 10_000)
    batches: Sequence[tuple[int, int]] = ((1_024, 8), (1_024, 64), (64, 4_096))
    loop: tuple[int, int] = (1_024, 16)
    rounds: int = 9
    batch_rounds: int = 31


QUICK = Sizes(paper=(10, 50, 100), batches=((64, 8), (8, 64)), loop=(64, 16), rounds=3, batch_rounds=3)


class Row(NamedTuple):
    """One measurement, one line of the CSV; README.md says what the columns mean."""

    table: str
    case: str
    method: str
    groups: int | None
    group_size: int | None
    seconds: float
    repeats: int
    optimal_value: float | None = None
    ratio: float | None = None
    ratio_to: str | None = None


class Timing(NamedTuple):
    """What a method returned, and the median seconds of its repeats."""

    result: Any
    seconds: float
    repeats: int


class Disagreement(Exception):
    """Two methods solve one instance differently: the times mean nothing."""


def instance(n_groups: int, group_size: int, seed: int) -> tuple[NDArray, NDArray]:
    """Rewards uniform in [0, 1) and weights that sum to 1, [P, G] each, the same for one seed and shape."""
    generator = np.random.default_rng([seed, n_groups, group_size])
    rewards = generator.random((n_groups, group_size))
    weights = 1.0 - generator.random((n_groups, group_size))  # in (0, 1]
    return rewards, weights / weights.sum(axis=1, keepdims=True)


def closed_form(rewards: NDArray, weights: NDArray, ties: Literal["merge", "split"] = "merge") -> Callable[[], NDArray]:
    """A call of `increase_variance` on tensors that are ready, as they are in training; it gives [P, G]."""
    values, log_weights = torch.from_numpy(rewards), torch.from_numpy(weights).log()
    return lambda: increase_variance(values, log_weights, lower=LOWER, upper=UPPER, ties=ties).numpy()


def measure(methods: Mapping[str, Callable[[], Any]], rounds: int, once_above: float = math.inf) -> dict[str, Timing]:
    """Times the methods in turn, so that a change of the machine's load meets all of them.

    The first call of each warms up and is not counted, unless it takes more than `once_above` seconds: then it is
    the only one.
    """
    first = {name: _timed(method) for name, method in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            if first[name][1] <= once_above:
                seconds[name].append(_timed(method)[1])
    counted = {name: seconds[name] or [first[name][1]] for name in methods}
    return {name: Timing(first[name][0], statistics.median(counted[name]), len(counted[name])) for name in methods}


def _timed(method: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = method()
    return result, time.perf_counter() - start


def optimal_values(case: str, rewards: NDArray, weights: NDArray, found: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The objective sum p_i z_i^2 of each method's solution [P, G], for each group: [P].

    Raises:
        Disagreement: a solution leaves the range or the weighted mean, or the values of a group differ.
    """
    for method, z in found.items():
        moved = np.abs((weights * (z - rewards)).sum(axis=1)).max()
        outside = max(LOWER - z.min(), z.max() - UPPER)
        if not max(moved, outside) <= TOLERANCE:
            raise Disagreement(
                f"{case}: {method} moves the weighted mean by {moved:.1e} and leaves the range by {outside:.1e}, "
                f"expected at most {TOLERANCE:.0e}"
            )
    values = {method: (weights * z**2).sum(axis=1) for method, z in found.items()}
    spread = np.ptp(np.stack(list(values.values())), axis=0)
    if not spread.max() <= TOLERANCE:
        worst = int(spread.argmax())
        listed = ", ".join(f"{method} {value[worst]:.12g}" for method, value in values.items())
        raise Disagreement(f"{case}: the optimal values differ by {spread.max():.1e}, got {listed}")
    return values


def paper_rows(sizes: Sizes, seed: int, say: Callable[[str], None]) -> Iterable[Row]:
    """The paper's Table 1: one group of n, by enumeration, one pass and the closed form."""
    for n in sizes.paper:
        rewards, weights = instance(1, n, seed)
        group = (rewards[0], weights[0], LOWER, UPPER)
        methods: dict[str, Callable[[], NDArray]] = {}
        note = ""
        if n <= ENUMERATED_UP_TO:
            methods["enumeration"] = lambda group=group: enumeration_search(*group)[0][None]
            note = f": enumerating {(n + 1) * (n + 2) // 2:,} points"
            note += ", some seconds to a minute" if n >= 500 else ""
        methods["one pass"] = lambda group=group: one_pass_search(*group)[0][None]
        methods["closed form"] = closed_form(rewards, weights)
        say(f"n = {n:,}{note}")
        timings = measure(methods, sizes.rounds, once_above=LONG)
        yield from _compared("paper", f"n = {n}", (rewards, weights), timings)


def loop_rows(sizes: Sizes, seed: int) -> Iterable[Row]:
    """A batch in one call against a Python loop of the one-pass search over its groups."""
    rewards, weights = instance(*sizes.loop, seed)

    def loop() -> NDArray:
        return np.stack([one_pass_search(r, p, LOWER, UPPER)[0] for r, p in zip(rewards, weights, strict=True)])

    timings = measure({"loop of one pass": loop, "closed form": closed_form(rewards, weights)}, sizes.rounds)
    yield from _compared("loop", str(list(sizes.loop)), (rewards, weights), timings)


def _compared(table: str, case: str, problem: tuple[NDArray, NDArray], timings: Mapping[str, Timing]) -> Iterable[Row]:
    """One row a method, with the mean optimal value of the groups and the time as a multiple of the closed form's."""
    values = optimal_values(f"{table}, {case}", *problem, {name: timing.result for name, timing in timings.items()})
    groups, group_size = problem[0].shape
    for name, (_, seconds, repeats) in timings.items():
        value, ratio = float(values[name].mean()), seconds / timings["closed form"].seconds
        yield Row(table, case, name, groups, group_size, seconds, repeats, value, ratio, "closed form")


def batch_rows(sizes: Sizes, seed: int) -> Iterable[Row]:
    """Whole batches, with both ways to treat ties, without and with ties to treat."""
    for shape in sizes.batches:
        drawn, weights = instance(*shape, seed)
        for case, rewards in {"all distinct": drawn, "tenths": drawn.round(1)}.items():
            methods = {"merge": closed_form(rewards, weights), "split": closed_form(rewards, weights, "split")}
            for ties, (_, seconds, repeats) in measure(methods, sizes.batch_rounds).items():
                yield Row("batches", case, ties, *shape, seconds, repeats)


def study_rows(study: str) -> list[Row]:
    """The adjustment's share of a training step, for each arm the median over the steps of its runs.

    Raises:
        ReportError: there is no study, or no run in it.
        UserError: its runs did not log the two times.
    """
    runs = load_runs(study)
    times = runs[runs["metric"].isin([STEP_TIME, STEP_TIME_ADJUSTMENT])]
    steps = times.pivot_table(index=["arm", "run", "step"], columns="metric", values="value")
    steps = steps.reindex(columns=[STEP_TIME, STEP_TIME_ADJUSTMENT]).dropna()
    if steps.empty:
        raise UserError(f"{study}: got no step with {STEP_TIME_ADJUSTMENT} and {STEP_TIME}, expected a study's runs")
    rows = []
    for arm, logged in steps.groupby(level="arm"):
        whole, part = logged[STEP_TIME].to_numpy(), logged[STEP_TIME_ADJUSTMENT].to_numpy()
        row = Row("study", str(arm), "adjustment", None, None, float(np.median(part)), len(logged))
        rows.append(row._replace(ratio=float(np.median(part / whole)), ratio_to="training step"))
    return rows
