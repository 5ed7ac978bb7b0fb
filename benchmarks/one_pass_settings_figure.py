"""The picture of one_pass_settings.py: a panel for the passive and the active setting, two for deployment."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from one_pass_settings_runs import (
    ACTIVE,
    ACTIVE_REGIMES,
    ACTIVE_STRATEGIES,
    BETAS,
    DEPLOYMENT,
    DEPLOYMENT_REGIMES,
    DEPLOYMENT_STRATEGIES,
    ESTIMATORS,
    GREEDY,
    ONE_PASS,
    PASSIVE,
    PASSIVE_REGIMES,
    RANDOM,
    REGRET,
    pessimistic,
)
from one_pass_settings_tables import Cell, Results, floor_of
from reporting import label_axes

from analysis.statistics import Estimate
from analysis.style import DASHES, FAINT, PALETTE, RC

REGULARISED = {"lambda 1": ONE_PASS, "lambda 0.1": f"{ONE_PASS}, 0.1"}
"""What the panel of the passive setting shows: its name there -> estimator."""


@matplotlib.rc_context(RC)
def settings_figure(results: Results) -> Figure:
    """Bars are 95 % bootstrap intervals over seeds."""
    figure = Figure(figsize=(10.4, 8.8), layout="constrained")
    grid = figure.subplots(2, 2)
    draw_passive(grid[0, 0], results)
    draw_active(grid[0, 1], results)
    for axes, regime in zip(grid[1], DEPLOYMENT_REGIMES, strict=True):
        draw_deployment(axes, results, regime)
    return figure


def draw_passive(axes: Axes, results: Results) -> None:
    """Value of the pessimistic policy minus the greedy one's, against beta."""
    label_axes(axes, "Passive: what pessimism adds, one pass", "beta", "true reward minus the greedy policy's")
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    (labels,) = results.labels(PASSIVE, "value")
    betas = BETAS[1:]
    places = np.arange(len(betas))
    for i, regime in enumerate(PASSIVE_REGIMES):
        for j, (name, estimator) in enumerate(REGULARISED.items()):
            cells = [Cell(PASSIVE, regime, estimator, pessimistic(beta), labels, "value") for beta in betas]
            found = [results.difference(cell, cell._replace(method=GREEDY)) for cell in cells]
            shift = 0.09 * (2 * i + j - len(PASSIVE_REGIMES) + 0.5)
            _bars(axes, places + shift, found, PALETTE[i], DASHES[j][0], f"{regime}, {name}", filled=j == 0)
    axes.set_xticks(places, [f"{beta:g}" for beta in betas])
    _legend_below(axes)


def draw_active(axes: Axes, results: Results) -> None:
    """Cross-entropy minus that of random pairs at the last label, a group of bars a regime."""
    labels = results.labels(ACTIVE, "cross-entropy")[-1]
    label_axes(axes, f"Active: against random pairs, {labels} labels", "", "held-out cross-entropy minus random's")
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    strategies = [strategy for strategy in ACTIVE_STRATEGIES if strategy != RANDOM]
    places = np.arange(len(ACTIVE_REGIMES))
    for i, strategy in enumerate(strategies):
        for j, estimator in enumerate(ESTIMATORS):
            cells = [
                Cell(ACTIVE, regime.name, estimator, strategy, labels, "cross-entropy") for regime in ACTIVE_REGIMES
            ]
            found = [results.difference(cell, cell._replace(method=RANDOM)) for cell in cells]
            shift = 0.12 * (2 * i + j - len(strategies) + 0.5)
            _bars(axes, places + shift, found, PALETTE[i], "none", f"{strategy}, {estimator}", filled=j == 0)
    axes.set_xticks(places, [regime.name for regime in ACTIVE_REGIMES])
    _legend_below(axes)


def draw_deployment(axes: Axes, results: Results, regime: str) -> None:
    """What cumulative regret lies above the floor, against rounds, both logarithmic, with sqrt(t) for the eye."""
    label_axes(axes, f"Deployment: {regime} prompts", "rounds", "regret of the pair, above that of the two best")
    rounds = results.labels(DEPLOYMENT, REGRET)
    for colour, strategy in zip(PALETTE, DEPLOYMENT_STRATEGIES, strict=False):
        cells = [Cell(DEPLOYMENT, regime, ONE_PASS, strategy, t, REGRET) for t in rounds]
        found = [results.difference(cell, floor_of(cell)) for cell in cells]
        axes.plot(rounds, [estimate.point for estimate in found], color=colour, linewidth=1.6, label=strategy)
        low, high = [estimate.low for estimate in found], [estimate.high for estimate in found]
        axes.fill_between(rounds, low, high, color=colour, alpha=0.13, linewidth=0)
    start = Cell(DEPLOYMENT, regime, ONE_PASS, RANDOM, rounds[0], REGRET)
    grown = results.difference(start, floor_of(start)).point * np.sqrt(np.array(rounds) / rounds[0])
    axes.plot(rounds, grown, color=FAINT, linestyle="dashed", label="grows as sqrt(t)")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")  # the usual powers are parsed as mathematics, which the style leaves off
    axes.legend(fontsize=7.5, loc="upper left")


def _legend_below(axes: Axes) -> None:
    axes.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(0.0, -0.14), ncols=2, borderaxespad=0.0)


def _bars(
    axes: Axes, x: np.ndarray, found: list[Estimate], colour: str, line: str, label: str, *, filled: bool = True
) -> None:
    """Points with their bootstrap intervals, joined by a line of this dash."""
    points = np.array([estimate.point for estimate in found])
    ends = np.array([[estimate.point - estimate.low, estimate.high - estimate.point] for estimate in found]).T
    axes.errorbar(
        x,
        points,
        yerr=ends,
        color=colour,
        linestyle=line,
        linewidth=1.0,
        elinewidth=1.2,
        marker="o",
        markersize=4.0,
        markerfacecolor=colour if filled else "white",
        label=label,
    )
