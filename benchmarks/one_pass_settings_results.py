"""Rows of one_pass_settings.py -> paired differences with intervals, verdicts in words, tables and the picture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reporting import label_axes, print_table
from rich.console import Console

from analysis.statistics import Estimate, estimate_mean
from analysis.style import DASHES, FAINT, PALETTE, RC

PASSIVE, ACTIVE, DEPLOYMENT = "passive", "active", "deployment"
TRUTH = "truth"  # the method that knows the reward: what nobody can do better
RANDOM, GREEDY = "random", "greedy"
REGRET = "regret"
ONE_PASS = "one pass"
BOTH_GREEDY = "best-second"  # what optimism is compared with: both completions are shown for their reward alone
BETTER, WORSE, UNSEEN = "better", "worse", "no difference"


COLUMNS = ["setting", "regime", "estimator", "method", "seed", "labels", "metric", "value"]


class Cell(NamedTuple):
    """What is the same in all seeds of a number."""

    setting: str
    regime: str
    estimator: str
    method: str
    labels: int
    metric: str


class Results:
    """The numbers of all seeds: a row a cell in the order of measurement, a column a seed."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.wide = frame.pivot_table("value", list(Cell._fields), "seed", sort=False)

    def cells(self, setting: str, metric: str, at: int | None = None) -> list[Cell]:
        """Return the cells of a metric, at one number of labels (default: the last), with those of the truth."""
        found = [cell for cell in map(Cell._make, self.wide.index) if (cell.setting, cell.metric) == (setting, metric)]
        wanted = (0, at or self.labels(setting, metric)[-1])
        return [cell for cell in found if cell.labels in wanted]

    def labels(self, setting: str, metric: str) -> list[int]:
        """Return the numbers of labels at which a metric was measured, without 0."""
        return sorted({labels for s, _, _, _, labels, m in self.wide.index if (s, m) == (setting, metric) and labels})

    def mean(self, cell: Cell) -> Estimate:
        """Return the mean over the seeds with its interval."""
        return estimate_mean(self.wide.loc[cell].tolist())

    def difference(self, cell: Cell, baseline: Cell) -> Estimate:
        """Return the mean over the seeds of a value minus the baseline's, with its interval."""
        found = self.wide.loc[cell] - self.wide.loc[baseline]
        assert found.notna().all(), f"{cell} and {baseline} were not measured with the same seeds"
        return estimate_mean(found.tolist())


def verdict(difference: Estimate, *, lower_is_better: bool) -> str:
    """Return better or worse where Student's interval excludes 0."""
    if not difference.excludes(0.0):
        return UNSEEN
    return BETTER if (difference.point < 0.0) == lower_is_better else WORSE


def print_differences(
    console: Console, title: str, results: Results, cells: Sequence[Cell], baseline: str, *, lower_is_better: bool
) -> None:
    """Print a line a cell: its mean, and how far it lies from the baseline's."""
    rows: list[list[str] | None] = []
    before = cells[0]._replace(estimator="none")
    for cell in cells:
        digits = 0 if cell.setting == DEPLOYMENT else 4
        if cell.regime != before.regime:
            rows.append(None)
        head = cell.regime if cell.regime != before.regime or cell is cells[0] else cell.estimator
        head = head if cell[1:3] != before[1:3] else ""
        line = [head, cell.method, f"{results.mean(cell).point:,.{digits}f}"]
        if cell.method not in (baseline, TRUTH):
            found = results.difference(cell, cell._replace(method=baseline))
            line += [f"{found.point:+,.{digits}f}", f"{found.low:+,.{digits}f}, {found.high:+,.{digits}f}"]
            line.append(verdict(found, lower_is_better=lower_is_better))
        rows.append(line)
        before = cell
    columns = ("", "", "mean", "change", "interval", "")
    print_table(console, f"{title}; change: from {baseline}", columns, rows)


def floor_of(cell: Cell) -> Cell:
    """Return the cell with the regret of the two best completions in the same rounds."""
    return cell._replace(estimator="", method=TRUTH)


def print_tables(console: Console, results: Results) -> None:
    """Print a table for each setting, of the active one at a quarter of the labels and at all."""
    passive, deployment = results.cells(PASSIVE, "value"), results.cells(DEPLOYMENT, REGRET)
    title = f"Passive: true reward of the policy after {passive[-1].labels} logged labels"
    print_differences(console, title, results, passive, GREEDY, lower_is_better=False)
    labels = results.labels(ACTIVE, "accuracy")
    for at in (labels[len(labels) // 4 - 1], labels[-1]):
        for metric in ("cross-entropy", "accuracy"):
            cells, lower = results.cells(ACTIVE, metric, at), metric == "cross-entropy"
            title = f"Active: held-out {metric} after {at} labels"
            print_differences(console, title, results, cells, RANDOM, lower_is_better=lower)
    title = f"Deployment: regret of the pair in {deployment[-1].labels:,} rounds"
    print_differences(console, title, results, deployment, BOTH_GREEDY, lower_is_better=True)
    console.print(
        f"Means over {results.wide.shape[1]} seeds; 95 % intervals of the mean paired difference, by Student's "
        f"t. Where it contains 0: {UNSEEN}. Without a true difference one line in twenty shows one."
    )


@matplotlib.rc_context(RC)
def settings_figure(results: Results) -> Figure:
    """Draw a panel for the passive and the active setting, two for deployment; bars are 95 % intervals."""
    figure = Figure(figsize=(10.4, 8.8), layout="constrained")
    grid = figure.subplots(2, 2)
    label_axes(grid[0, 0], "Passive: what pessimism adds, one pass", "beta", "true reward minus the greedy policy's")
    cells = [c for c in results.cells(PASSIVE, "value") if c.method not in (TRUTH, GREEDY) and ONE_PASS in c.estimator]
    _bars(grid[0, 0], results, cells, GREEDY, "method", "regime", joined=True)
    cells = [c for c in results.cells(ACTIVE, "cross-entropy") if c.method not in (TRUTH, RANDOM)]
    title = f"Active: against random pairs, {cells[0].labels} labels"
    label_axes(grid[0, 1], title, "", "held-out cross-entropy minus random's")
    _bars(grid[0, 1], results, cells, RANDOM, "regime", "method", joined=False)
    for axes, regime in zip(grid[1], dict.fromkeys(c.regime for c in results.cells(DEPLOYMENT, REGRET)), strict=True):
        _draw_deployment(axes, results, regime)
    return figure


def _bars(
    axes: Axes, results: Results, cells: Sequence[Cell], baseline: str, place: str, colour: str, *, joined: bool
) -> None:
    """Draw differences from the baseline: `place` and `colour` are fields whose values decide; a fill an estimator."""
    colours = list(dict.fromkeys(getattr(cell, colour) for cell in cells))
    places = list(dict.fromkeys(getattr(cell, place) for cell in cells))
    estimators = list(dict.fromkeys(cell.estimator for cell in cells))
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    for i, value in enumerate(colours):
        for j, estimator in enumerate(estimators):
            own = [cell for cell in cells if getattr(cell, colour) == value and cell.estimator == estimator]
            found = [results.difference(cell, cell._replace(method=baseline)) for cell in own]
            low, point, high = (np.array([getattr(e, end) for e in found]) for end in ("low", "point", "high"))
            x = np.arange(len(places)) + 0.1 * (2 * i + j - len(colours) + 0.5)
            look: dict[str, Any] = {"linestyle": DASHES[j][0] if joined else "none"}
            look |= {"markerfacecolor": "white" if j else PALETTE[i]}
            look |= {"color": PALETTE[i], "linewidth": 1.0, "marker": "o", "markersize": 4.0}
            axes.errorbar(x, point, yerr=[point - low, high - point], label=f"{value}, {estimator}", **look)
    axes.set_xticks(range(len(places)), [text.removeprefix("beta ") for text in places])
    axes.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(0.0, -0.14), ncols=2, borderaxespad=0.0)


def _draw_deployment(axes: Axes, results: Results, regime: str) -> None:
    """Draw cumulative regret above the floor against rounds, both logarithmic, with sqrt(t) for the eye."""
    label_axes(axes, f"Deployment: {regime} prompts", "rounds", "regret of the pair, above that of the two best")
    rounds = results.labels(DEPLOYMENT, REGRET)
    cells = [cell for cell in results.cells(DEPLOYMENT, REGRET) if cell.regime == regime and cell.method != TRUTH]
    for colour, cell in zip(PALETTE, cells, strict=False):
        found = [results.difference(cell._replace(labels=t), floor_of(cell)._replace(labels=t)) for t in rounds]
        low, point, high = ([getattr(e, end) for e in found] for end in ("low", "point", "high"))
        axes.plot(rounds, point, color=colour, linewidth=1.6, label=cell.method)
        axes.fill_between(rounds, low, high, color=colour, alpha=0.13, linewidth=0)
        if cell.method == RANDOM:
            grown = point[0] * np.sqrt(np.array(rounds) / rounds[0])
            axes.plot(rounds, grown, color=FAINT, linestyle="dashed", label="grows as sqrt(t)")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")  # the usual powers are parsed as mathematics, which the style leaves off
    axes.legend(fontsize=7.5, loc="upper left")
