"""The picture of one_pass.py."""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from one_pass_synthetic import (
    COLD,
    CONSTANT,
    FALLING,
    IMPLICIT,
    LOOSE,
    ONE_PASS,
    WARM,
    WINDOW,
    Track,
    best,
    default,
)
from reporting import label_axes

from analysis.style import INK, PALETTE, RC

STYLES = {
    ONE_PASS: (PALETTE[0], "solid"),
    IMPLICIT: (PALETTE[4], "dashed"),
    WARM: (PALETTE[1], "solid"),
    COLD: (PALETTE[5], "dashed"),
    LOOSE: (PALETTE[1], "dotted"),
    CONSTANT: (PALETTE[2], "solid"),
    FALLING: (PALETTE[3], "dashed"),
}


@matplotlib.rc_context(RC)
def one_pass_figure(tracks: Sequence[Track], bayes: tuple[float, float]) -> Figure:
    """What is learned, and what a round costs, against the pairs learned from.

    Args:
        tracks: of all arms; a method with a lambda is drawn with the default, SGD with its best rate.
        bayes: mean cross-entropy and accuracy of the reward that labelled the pairs.
    """
    drawn = [default(tracks, name) for name in (ONE_PASS, IMPLICIT, WARM, COLD, LOOSE)]
    drawn += [best(tracks, name) for name in (CONSTANT, FALLING)]
    figure = Figure(figsize=(9.0, 6.8), layout="constrained")
    loss, accuracy, seconds, memory = figure.subplots(2, 2).flat
    _curves(loss, "Held-out cross-entropy", "nats", drawn, lambda track: track.cross_entropy)
    _curves(accuracy, "Held-out pair accuracy", "share of pairs", drawn, lambda track: track.accuracy)
    _curves(seconds, f"Time of a round, median of {WINDOW}", "processor milliseconds", drawn, _milliseconds)
    _curves(memory, "State kept between rounds", "MiB", drawn, lambda track: track.state_bytes / 2**20)
    for axes, value in zip((loss, accuracy), bayes, strict=True):
        axes.axhline(value, color=INK, linestyle=(0, (1, 3)), linewidth=1.0, label="the true reward")
    highest = max(
        track.cross_entropy[:, 0].max() for track in drawn if track.arm.name not in (CONSTANT, FALLING)
    )  # SGD may start far above
    loss.set_ylim(bayes[0] - 0.01, highest + 0.02)
    for axes in (seconds, memory):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default is a formula, which stays source
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5, handlelength=3.2)
    return figure


def _milliseconds(track: Track) -> np.ndarray:
    """The median time of the last rounds, at each round: [n seeds, rounds]."""
    return np.stack([track.round_seconds(samples) for samples in track.samples.tolist()], axis=1) * 1e3


def _curves(axes: Axes, title: str, unit: str, tracks: Sequence[Track], value: Callable[[Track], np.ndarray]) -> None:
    """The mean over the seeds, and a band from the lowest to the highest."""
    label_axes(axes, title, "pairs learned from", unit)
    for track in tracks:
        colour, line = STYLES[track.arm.name]
        values = value(track)
        axes.fill_between(track.samples, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.13, linewidth=0)
        label = f"{track.arm.name}, {track.arm.setting}"
        axes.plot(track.samples, values.mean(axis=0), color=colour, linestyle=line, linewidth=1.6, label=label)
