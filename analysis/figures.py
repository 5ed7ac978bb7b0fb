"""The pictures of the report, each a function from curves to a matplotlib figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.curves import Curve, Curves, common_span
from analysis.reward_kl import kl_key
from analysis.style import FAINT, INK, RC, ArmStyle
from grpovi_lightning import metric_keys

SIZE = (5.2, 3.4)
"""Inches."""

LONG_NAME = 24
"""Characters of an arm's name above which two names do not fit beside each other."""

BAND = (
    "Bold: mean over seeds, where all seeds of the arm were measured. Band: from the lowest to the highest seed. "
    "Thin: the seeds."
)


@dataclass(frozen=True)
class Panel:
    """One quantity that is drawn against steps: file name, heading, tag."""

    name: str
    title: str
    metric: str


def learning_panels(metric: str) -> list[Panel]:
    """The compared metric first, then proxy reward, KL, length and entropy, held out where the metric is."""
    prefix = metric_keys.EVAL_PREFIX if metric.startswith(metric_keys.EVAL_PREFIX) else ""
    panels = [
        Panel("learning_metric", f"Compared metric: {metric}", metric),
        Panel("learning_gold", "Gold reward", prefix + metric_keys.rewards_mean("gold")),
        Panel("learning_reward", "Proxy reward: what is trained on", prefix + metric_keys.REWARD),
        Panel("learning_kl", "KL to the reference, nats a token", kl_key(metric)),
        Panel("learning_length", "Completion length, tokens", prefix + metric_keys.COMPLETIONS_MEAN_LENGTH),
        Panel("learning_entropy", "Entropy, nats a token", prefix + metric_keys.ENTROPY),
    ]
    return [panels[0], *(panel for panel in panels[1:] if panel.metric != metric)]


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all `curves` cover and their values there: steps [N], values [n seeds, N]; N may be 0."""
    first, last = common_span(curves)
    grid = np.unique(np.concatenate([curve.steps for curve in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.array([np.interp(grid, curve.steps, curve.values) for curve in curves])


@matplotlib.rc_context(RC)
def learning_figure(
    title: str, metric: str, curves: Curves, styles: Mapping[str, ArmStyle], targets: Mapping[str, float] | None = None
) -> Figure:
    """One quantity against steps: mean, band and seeds of every arm; dotted: targets in the baseline's colour."""
    figure, axes = _figure(title, "policy updates", metric)
    for arm, value in (targets or {}).items():
        axes.axhline(value, color=styles[arm].colour, linestyle=(0, (1, 3)), linewidth=1.0)
    for arm, style in styles.items():
        seeds = list(curves.get(arm, {}).values())
        if not seeds:
            continue
        for curve in seeds:
            axes.plot(curve.steps, curve.values, color=style.colour, linewidth=0.6, alpha=0.45, linestyle=style.line)
        grid, values = mean_curve(seeds)
        if len(seeds) > 1:
            axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=style.colour, alpha=0.13, linewidth=0)
        axes.plot(grid, values.mean(axis=0), color=style.colour, linewidth=1.8, linestyle=style.line, label=arm)
    return _with_legend(figure, axes)


@matplotlib.rc_context(RC)
def difference_figure(
    arm: str, baseline: str, metric: str, curves: Curves, seeds: Sequence[int], style: ArmStyle
) -> Figure:
    """Arm minus baseline against steps, one thin line a paired seed and their mean."""
    between = "\n" if max(len(arm), len(baseline)) > LONG_NAME else " "
    figure, axes = _figure(f"{arm}{between}minus {baseline}", "policy updates", f"difference in {metric}")
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
    """The metric against KL at the same steps: thin lines are seeds, bold is the mean of both, step by step."""
    figure, axes = _figure("Reward against KL", f"{kl_key(metric)}, nats a token", metric)
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
    return _with_legend(figure, axes)


def _figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, pad=8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(len(label) for label in labels) > LONG_NAME else 2
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            labelcolor=INK,
            fontsize=8.5,
            handlelength=3.2,
        )
    return figure
