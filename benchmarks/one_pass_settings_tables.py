"""Numbers of single seeds -> means, paired differences with intervals, verdicts in words, and the tables of them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from one_pass_settings_runs import (
    ACTIVE,
    ACTIVE_REGIMES,
    ACTIVE_STRATEGIES,
    BETAS,
    DEPLOYMENT,
    DEPLOYMENT_REGIMES,
    DEPLOYMENT_STRATEGIES,
    ESTIMATORS,
    FIRST_REGRET,
    GREEDY,
    ONE_PASS,
    PASSIVE,
    PASSIVE_ESTIMATORS,
    PASSIVE_REGIMES,
    RANDOM,
    REGRET,
    TRUTH,
    UNCERTAIN,
    Row,
    Sizes,
    pessimistic,
)
from reporting import titled_table
from rich.console import Console

from analysis.statistics import Bootstrap, Estimate, estimate_mean
from analysis.wording import number

BETTER, WORSE, UNSEEN = "better", "worse", "no difference"
BOTH_GREEDY = "best-second"
"""What optimism is compared with: both completions are shown for their reward alone."""


class Cell(NamedTuple):
    """What is the same in all seeds of a number; the columns of `Row` without seed and value."""

    setting: str
    regime: str
    estimator: str
    method: str
    labels: int
    metric: str


class Results:
    """All rows, looked up by cell."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Takes the rows in any order."""
        self._of_cell: dict[Cell, dict[int, float]] = {}
        for row in rows:
            cell = Cell(row.setting, row.regime, row.estimator, row.method, row.labels, row.metric)
            self._of_cell.setdefault(cell, {})[row.seed] = row.value
        self._bootstrap = Bootstrap()

    def labels(self, setting: str, metric: str) -> list[int]:
        """Where a metric of a setting was measured, without 0."""
        return sorted({cell.labels for cell in self._of_cell if cell[::5] == (setting, metric) and cell.labels})

    def mean(self, cell: Cell) -> Estimate:
        """Over the seeds, with intervals."""
        return estimate_mean(list(self._of_cell[cell].values()), self._bootstrap)

    def difference(self, cell: Cell, baseline: Cell) -> Estimate:
        """The mean over the seeds of a value minus the baseline's, with intervals."""
        ours, theirs = self._of_cell[cell], self._of_cell[baseline]
        assert ours.keys() == theirs.keys(), f"{cell}: seeds {list(ours)}, but {list(theirs)} of {baseline}"
        return estimate_mean([value - theirs[seed] for seed, value in ours.items()], self._bootstrap)


def verdict(difference: Estimate, *, lower_is_better: bool) -> str:
    """A difference is seen where the bootstrap's and Student's interval both exclude 0."""
    if not difference.excludes(0.0):
        return UNSEEN
    return BETTER if (difference.point < 0.0) == lower_is_better else WORSE


def passive_cells(results: Results) -> Iterator[Cell]:
    """What the table of the passive setting shows."""
    (labels,) = results.labels(PASSIVE, "value")
    for regime in PASSIVE_REGIMES:
        yield Cell(PASSIVE, regime, "", TRUTH, 0, "value")
        for estimator in PASSIVE_ESTIMATORS:
            for beta in BETAS:
                yield Cell(PASSIVE, regime, estimator, pessimistic(beta), labels, "value")


def active_cells(labels: int, metric: str) -> Iterator[Cell]:
    """What a table of the active setting shows."""
    for regime in ACTIVE_REGIMES:
        yield Cell(ACTIVE, regime.name, "", TRUTH, 0, metric)
        for estimator in ESTIMATORS:
            for strategy in ACTIVE_STRATEGIES:
                yield Cell(ACTIVE, regime.name, estimator, strategy, labels, metric)


def print_active(console: Console, results: Results) -> None:
    """At a quarter of the labels and at all of them, and how often uncertainty was the better guide."""
    labels = results.labels(ACTIVE, "accuracy")
    found: list[str] = []
    for at in (labels[len(labels) // 4 - 1], labels[-1]):
        for metric in ("cross-entropy", "accuracy"):
            cells, lower = list(active_cells(at, metric)), metric == "cross-entropy"
            title = f"Active: held-out {metric} after {at} labels"
            print_differences(console, title, results, cells, RANDOM, lower_is_better=lower)
            found += [
                verdict(results.difference(cell, cell._replace(method=RANDOM)), lower_is_better=lower)
                for cell in cells
                if cell.method == UNCERTAIN
            ]
    counts = ", ".join(f"{word} in {found.count(word)}" for word in (BETTER, WORSE, UNSEEN))
    console.print(f"The most uncertain pairs against random pairs, {len(found)} comparisons: {counts}.")


def print_differences(
    console: Console, title: str, results: Results, cells: Iterable[Cell], baseline: str, *, lower_is_better: bool
) -> None:
    """One line a cell: its mean, and how far it lies from the baseline's."""
    table = titled_table(f"{title}; change: from {baseline}", *("", "", "mean", "change", "bootstrap", "t", ""))
    table.columns[0].justify = table.columns[1].justify = table.columns[-1].justify = "left"
    block = ("", "")
    for cell in cells:
        if block[0] and cell.regime != block[0]:
            table.add_section()
        head = "" if cell[1:3] == block else f"{cell.regime}" if cell.regime != block[0] else cell.estimator
        decimals = 0 if cell.setting == DEPLOYMENT else 4
        line = [f"{results.mean(cell).point:,.{decimals}f}"]
        if cell.method not in (baseline, TRUTH):
            found = results.difference(cell, cell._replace(method=baseline))
            line += [
                f"{found.point:+,.{decimals}f}",
                f"{found.low:+,.{decimals}f}, {found.high:+,.{decimals}f}",
                f"{found.t_low:+,.{decimals}f}, {found.t_high:+,.{decimals}f}",
                verdict(found, lower_is_better=lower_is_better),
            ]
        table.add_row(head, cell.method, *line)
        block = cell[1:3]
    console.print(table)


def floor_of(cell: Cell) -> Cell:
    """The regret of the two best completions in the same rounds."""
    return cell._replace(estimator="", method=TRUTH, metric=REGRET)


def growth(begin: Estimate, end: Estimate, ratio: float) -> float:
    """The exponent g of mean regret ~ t^g while t grows by this ratio: 0.5 is sqrt(t), 1 is linear.

    NaN where a mean is not positive.
    """
    return math.log(end.point / begin.point) / math.log(ratio) if min(begin.point, end.point) > 0.0 else math.nan


def print_deployment(console: Console, results: Results) -> None:
    """Regret and how it grows, one line a strategy."""
    rounds = results.labels(DEPLOYMENT, REGRET)[-1]
    cells = [
        Cell(DEPLOYMENT, regime, ONE_PASS, strategy, rounds, REGRET)
        for regime in DEPLOYMENT_REGIMES
        for strategy in DEPLOYMENT_STRATEGIES
    ]
    title = f"Deployment: regret of the pair in {rounds:,} rounds"
    print_differences(console, title, results, cells, BOTH_GREEDY, lower_is_better=True)
    first = [cell._replace(metric=FIRST_REGRET) for cell in cells]
    title = f"Deployment: regret of its first completion in {rounds:,} rounds"
    print_differences(console, title, results, first, BOTH_GREEDY, lower_is_better=True)
    columns = ("", "", "floor", "pair", "pair above floor", "first")
    table = titled_table("Deployment: the exponent at which regret grows", *columns)
    quarter = rounds // 4
    for cell in cells:
        of_first, floor = cell._replace(metric=FIRST_REGRET), floor_of(cell)
        begin, end = (
            [
                results.mean(cell._replace(labels=labels)),
                results.difference(cell._replace(labels=labels), floor._replace(labels=labels)),
                results.mean(of_first._replace(labels=labels)),
            ]
            for labels in (quarter, rounds)
        )
        growths = (growth(*ends, rounds / quarter) for ends in zip(begin, end, strict=True))
        table.add_row(cell.regime, cell.method, f"{results.mean(floor).point:,.0f}", *map(number, growths))
    console.print(
        table,
        "floor: regret of the two best completions, which nobody who shows two different ones can do without; it grows "
        "linearly. 0.5 is growth as sqrt(t), 1 is linear.",
        sep="\n",
    )


def print_tables(console: Console, results: Results, sizes: Sizes, seeds: Sequence[int]) -> None:
    """All tables."""
    title = f"Passive: true reward of the policy after {sizes.passive_labels} logged labels"
    print_differences(console, title, results, passive_cells(results), GREEDY, lower_is_better=False)
    print_active(console, results)
    print_deployment(console, results)
    console.print(
        f"Means over {len(seeds)} seeds; 95 % intervals of the mean paired difference, by bootstrap and Student's t. "
        f"{UNSEEN}: none can be seen, as one of them contains 0. Of the lines without a true difference about one in "
        "twenty will show one."
    )
