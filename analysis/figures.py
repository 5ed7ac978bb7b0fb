"""The pictures of the report, each a function from curves to a matplotlib figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from analysis.curves import Curve, Curves, beside, common_span, curves_of
from analysis.style import FAINT, INK, PALETTE, RC, ArmStyle
from analysis.tuning import Sensitivity
from grpovi_lightning import metric_keys
from grpovi_lightning.run_record.sweeps import Point, text_of

SIZE = (5.2, 3.4)
"""Inches."""

LONG_NAME = 24
"""Characters of an arm's name above which two names do not fit beside each other."""

LEGEND_ROWS = 4
"""Rows of a legend that fit into a figure of `SIZE`; each further one makes it higher."""

BAND = (
    "Bold: mean over seeds, where all seeds of the arm were measured. Band: from the lowest to the highest seed. "
    "Thin: the seeds."
)


@dataclass(frozen=True)
class Panel:
    """One quantity that is drawn against steps or labels.

    Attributes:
        name: File name without ending.
        title: Heading.
        metric: Tag.
        noisy: Whether single values say little, so that a running mean is drawn.
        logarithmic: Whether arms can lie orders of magnitude apart; drawn so where all values are above 0.
    """

    name: str
    title: str
    metric: str
    noisy: bool = False
    logarithmic: bool = False

    def curves(self, runs: pd.DataFrame) -> Curves:
        """Return what is drawn of `runs`."""
        curves = curves_of(runs, self.metric)
        if not self.noisy:
            return curves
        return {arm: {seed: curve.smoothed() for seed, curve in seeds.items()} for arm, seeds in curves.items()}


def learning_panels(metric: str) -> list[Panel]:
    """List the compared metric, then proxy reward, KL, length and entropy, held out where the metric is."""
    others = (
        ("gold", "Gold reward", metric_keys.rewards_mean("gold")),
        ("reward", "Proxy reward: what is trained on", metric_keys.REWARD),
        ("kl", "KL to the reference, nats a token", metric_keys.KL),
        ("length", "Completion length, tokens", metric_keys.COMPLETIONS_MEAN_LENGTH),
        ("entropy", "Entropy, nats a token", metric_keys.ENTROPY),
    )
    panels = [Panel(f"learning_{name}", title, beside(metric, key)) for name, title, key in others]
    compared = Panel("learning_metric", f"Compared metric: {metric}", metric)
    return [compared, *(panel for panel in panels if panel.metric != metric)]


def agreement_panels(names: Sequence[str]) -> list[Panel]:
    """Return a panel for each observed component: how far the trained-on reward agrees with it in training."""
    key, title = metric_keys.pair_agreement, "Agreement of the reward with the {} reward"
    numbered = enumerate(names, start=1)
    return [Panel(f"learning_agreement_{i}", title.format(name), key(name), noisy=True) for i, name in numbered]


def online_panels(metric: str) -> list[Panel]:
    """Return the panels on the worth and cost of a reward model that learns meanwhile; the compared metric first."""
    keys = metric_keys
    return [
        Panel("online_metric", "Compared metric", metric),
        Panel("online_pair_accuracy", "Pair accuracy of fresh comparisons", keys.ONLINE_PAIR_ACCURACY, noisy=True),
        Panel("online_cross_entropy", "Cross-entropy of fresh comparisons", keys.ONLINE_CROSS_ENTROPY, noisy=True),
        Panel("online_regret", "Regret of the compared pairs", keys.ONLINE_REGRET, noisy=True),
        Panel("online_seconds", "Seconds to learn from a round", keys.ONLINE_UPDATE_SECONDS, logarithmic=True),
        Panel("online_state", "Bytes kept for the next round", keys.ONLINE_STATE_BYTES, logarithmic=True),
    ]


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps that all `curves` cover, [N], and their values there, [n seeds, N]; N may be 0."""
    first, last = common_span(curves)
    grid = np.unique(np.concatenate([curve.steps for curve in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.array([np.interp(grid, curve.steps, curve.values) for curve in curves])


@matplotlib.rc_context(RC)
def learning_figure(
    title: str, metric: str, curves: Curves, styles: Mapping[str, ArmStyle], targets: Mapping[str, float] | None = None
) -> Figure:
    """Draw a quantity against steps: mean, band and seeds of every arm; dotted: targets in the baseline's colour."""
    figure, axes = new_figure(title, "policy updates", metric)
    for arm, value in (targets or {}).items():
        axes.axhline(value, color=styles[arm].colour, linestyle=(0, (1, 3)), linewidth=1.0)
    for arm, style in styles.items():
        _draw_arm(axes, arm, list(curves.get(arm, {}).values()), style)
    return with_legend(figure, axes)


@matplotlib.rc_context(RC)
def labels_figure(
    panel: Panel, curves: Curves, styles: Mapping[str, ArmStyle], levels: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw a quantity against labels, as `learning_figure` does against steps; `levels`: of arms without labels."""
    figure, axes = new_figure(panel.title, "labels used", panel.metric)
    if panel.logarithmic:
        _logarithmic(axes, np.concatenate([curve.values for seeds in curves.values() for curve in seeds.values()]))
    for arm, style in styles.items():
        if arm in levels:
            axes.axhspan(min(levels[arm]), max(levels[arm]), color=style.colour, alpha=0.13, linewidth=0)
            level = float(np.mean(levels[arm]))
            axes.axhline(level, color=style.colour, linewidth=1.8, linestyle=style.line, label=arm)
        else:
            _draw_arm(axes, arm, list(curves.get(arm, {}).values()), style)
    return with_legend(figure, axes)


@matplotlib.rc_context(RC)
def difference_figure(
    arm: str, baseline: str, metric: str, curves: Curves, seeds: Sequence[int], style: ArmStyle
) -> Figure:
    """Draw arm minus baseline against steps: a thin line for each paired seed, and their mean."""
    between = "\n" if max(len(arm), len(baseline)) > LONG_NAME else " "
    figure, axes = new_figure(f"{arm}{between}minus {baseline}", "policy updates", f"difference in {metric}")
    axes.axhline(0.0, color=FAINT, linewidth=0.8)
    pairs = [(curves[arm][seed], curves[baseline][seed]) for seed in seeds]
    for seed, pair in zip(seeds, pairs, strict=True):
        grid, values = mean_curve(pair)
        axes.plot(grid, values[0] - values[1], color=style.colour, linewidth=0.6, alpha=0.6, label=f"seed {seed}")
    if len(pairs) > 1:
        grid, values = mean_curve([curve for pair in pairs for curve in pair])
        differences = values[0::2] - values[1::2]
        axes.plot(grid, differences.mean(axis=0), color=style.colour, linewidth=1.8, label="mean")
    return figure


@matplotlib.rc_context(RC)
def kl_figure(metric: str, curves: Curves, kl: Curves, styles: Mapping[str, ArmStyle]) -> Figure:
    """Draw the metric against KL at the same steps: thin lines are seeds, bold is the mean of both, step by step."""
    figure, axes = new_figure("Reward against KL", f"{beside(metric, metric_keys.KL)}, nats a token", metric)
    for arm, style in styles.items():
        both = [seed for seed in curves.get(arm, {}) if seed in kl.get(arm, {})]
        for seed in both:
            _, values = mean_curve([kl[arm][seed], curves[arm][seed]])
            axes.plot(values[0], values[1], color=style.colour, linewidth=0.6, alpha=0.45, linestyle=style.line)
        if both:
            _, values = mean_curve([curve[arm][seed] for curve in (kl, curves) for seed in both])
            x, y = values[: len(both)].mean(axis=0), values[len(both) :].mean(axis=0)
            axes.plot(
                x, y, color=style.colour, linewidth=1.8, linestyle=style.line, label=arm, marker="o", markersize=2.5
            )
    return with_legend(figure, axes)


@matplotlib.rc_context(RC)
def sensitivity_figure(sensitivity: Sensitivity) -> Figure:
    """Draw the area over the grid, a panel an arm: mean over seeds, the seeds as dots, a ring around what was chosen.

    The setting with the most values lies along the axis; of the others, each combination has a line.
    """
    arms = sensitivity.arms
    columns = min(2, len(arms))
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(3.9 * columns, 0.9 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    colours: dict[str, str] = {}
    for axes, (arm, points) in zip(panels, arms.items(), strict=False):
        _draw_grid(axes, arm, points, sensitivity, colours)
    for axes in panels[len(arms) :]:
        axes.set_visible(False)
    figure.supylabel(f"mean {sensitivity.metric}\nover the run", fontsize=9.0, color=INK)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower left", ncols=4, labelcolor=INK, fontsize=8.5
    )
    return figure


def _draw_grid(
    axes: Axes, arm: str, points: Mapping[str, Point], sensitivity: Sensitivity, colours: dict[str, str]
) -> None:
    of_key = {key: dict.fromkeys(text_of(point.values[key]) for point in points.values()) for key in _keys(points)}
    along = max(of_key, key=lambda key: len(of_key[key]))
    ticks = list(of_key[along])
    lines: dict[str, list[tuple[int, str]]] = {}
    for name, point in points.items():
        others = Point(arm, None, {key: value for key, value in point.values.items() if key != along})
        lines.setdefault(others.label or "all points", []).append((ticks.index(text_of(point.values[along])), name))
    best = [point.label for name, point in points.items() if name in sensitivity.chosen]
    axes.set_title(arm + (f"\nbest: {best[0]}" if best else ""), pad=6)
    axes.grid(True, axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.set_xlabel(along.rpartition(".")[2])
    for label, placed in lines.items():
        colour = colours.setdefault(label, PALETTE[len(colours) % len(PALETTE)])
        measured = [(x, name) for x, name in placed if sensitivity.scores[name].problem is None]
        if measured:
            means = [sensitivity.scores[name].mean for _, name in measured]
            axes.plot(
                [x for x, _ in measured], means, color=colour, linewidth=1.6, marker="o", markersize=4.5, label=label
            )
        for x, name in placed:
            score = sensitivity.scores[name]
            if score.problem is not None:
                axes.plot(
                    x,
                    0.04,
                    marker="x",
                    color=colour,
                    linestyle="",
                    label="cannot be chosen",
                    clip_on=False,
                    transform=axes.get_xaxis_transform(),
                )
                continue
            areas = list(score.areas.values())
            axes.plot([x] * len(areas), areas, color=colour, linestyle="", marker="o", markersize=2.2, alpha=0.55)
            if name in sensitivity.chosen:
                axes.plot(
                    x,
                    score.mean,
                    marker="o",
                    markersize=11,
                    markerfacecolor="none",
                    markeredgecolor=INK,
                    markeredgewidth=1.2,
                    linestyle="",
                    label="best point",
                )


def _keys(points: Mapping[str, Point]) -> list[str]:
    return list(next(iter(points.values())).values)


def _draw_arm(axes: Axes, arm: str, seeds: Sequence[Curve], style: ArmStyle) -> None:
    if not seeds:
        return
    for curve in seeds:
        axes.plot(curve.steps, curve.values, color=style.colour, linewidth=0.6, alpha=0.45, linestyle=style.line)
    grid, values = mean_curve(seeds)
    if len(seeds) > 1:
        axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=style.colour, alpha=0.13, linewidth=0)
    axes.plot(grid, values.mean(axis=0), color=style.colour, linewidth=1.8, linestyle=style.line, label=arm)


def new_figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Begin a picture of the usual size, with a title, names of the axes, and faint lines across."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, pad=8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _logarithmic(axes: Axes, values: np.ndarray) -> None:
    # Ticks as plain numbers: matplotlib's own are formulas, which are not set as such here.
    low, high = values.min(), values.max()
    if low > 0:
        axes.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))  # else their number hangs on the release
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.9g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def with_legend(figure: Figure, axes: Axes) -> Figure:
    """Put the names of what was drawn below the picture, and return it."""
    _, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 1 if max(len(label) for label in labels) > LONG_NAME else 2
        # A legend of many arms has room of its own, instead of the curves'.
        further = max(0, -(-len(labels) // columns) - LEGEND_ROWS)
        figure.set_figheight(SIZE[1] + 0.17 * further)
        figure.legend(loc="outside lower left", ncols=columns, labelcolor=INK, fontsize=8.5, handlelength=3.2)
    return figure
