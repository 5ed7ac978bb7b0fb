"""Draw adjustment_group.png, the picture of adjustment.md: python docs/draw_adjustment.py [FOLDER]."""

import io
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from analysis.style import FAINT, INK, PALETTE, RC
from grpovi_lightning.adjustment import increase_variance

REWARDS = np.array([0.86, 0.72, 0.64, 0.55, 0.42, 0.35, 0.25, 0.15])
WEIGHTS = np.array([0.06, 0.15, 0.10, 0.22, 0.09, 0.16, 0.14, 0.08])
LOWER, UPPER = 0.0, 1.0
NAME = "adjustment_group.png"

# The colour says where a completion ends: at M, between the bounds, at m. Its position says the same.
_RISES, _BETWEEN, _FALLS = PALETTE[4], PALETTE[5], FAINT


def adjusted() -> NDArray[np.float64]:
    """Return the adjusted rewards of the group, [8]."""
    log_weights = torch.from_numpy(WEIGHTS).log()[None]
    return increase_variance(torch.from_numpy(REWARDS)[None], log_weights, lower=LOWER, upper=UPPER)[0].numpy()


def draw() -> Figure:
    """Draw the group before and after: a bar a completion, as wide as its weight and as high as its reward."""
    after = adjusted()
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(8.0, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _panel(left, "before", REWARDS, after)
        _panel(right, "after", after, after)
        _outlines(right)
        left.set_ylabel("reward")
    return figure


def _panel(axes: Axes, title: str, values: NDArray[np.float64], after: NDArray[np.float64]) -> None:
    mean = float(WEIGHTS @ values)
    variance = WEIGHTS @ (values - mean) ** 2
    axes.set_title(f"{title}: weighted variance {variance:.3f}")
    colours = [_RISES if z == UPPER else _FALLS if z == LOWER else _BETWEEN for z in after]
    starts = WEIGHTS.cumsum() - WEIGHTS
    axes.bar(starts, values - LOWER, WEIGHTS, LOWER, align="edge", color=colours, edgecolor="white", linewidth=1.2)
    for number, (x, value) in enumerate(zip(starts + WEIGHTS / 2, values, strict=True), start=1):
        axes.text(x, value + 0.015, f"{value:.2f}", ha="center", va="bottom", fontsize=7.0)
        axes.text(x, LOWER - 0.03, str(number), ha="center", va="top", fontsize=8.0, color=INK)
    axes.axhline(mean, color=INK, linestyle="dashed", linewidth=1.2)
    axes.text(1.0, mean + 0.012, f"weighted mean {mean:.3f}", ha="right", va="bottom", fontsize=8.0)
    for bound in (LOWER, UPPER):
        axes.axhline(bound, color=INK, linewidth=0.8)
    axes.set(xlim=(-0.02, 1.02), ylim=(LOWER - 0.11, UPPER + 0.09), xlabel="completions by reward; width = weight")
    axes.set_yticks([LOWER, 0.25, 0.5, 0.75, UPPER], ["m = 0", "0.25", "0.5", "0.75", "M = 1"])
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_bounds(LOWER, UPPER)


def _outlines(axes: Axes) -> None:
    """Draw the rewards before as dotted steps over the bars after."""
    edges = np.concatenate([[0.0], WEIGHTS.cumsum()])
    axes.stairs(REWARDS, edges, baseline=None, color=INK, linestyle="dotted", linewidth=1.2)
    axes.text(edges[5] + WEIGHTS[5] / 2, REWARDS[5] + 0.015, "before", ha="center", va="bottom", fontsize=8.0)


def main() -> None:
    """Write the picture into the folder given, by default the one of this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    drawn = io.BytesIO()
    with matplotlib.rc_context(RC):
        draw().savefig(drawn, dpi=130)
    # 256 colours are enough, and take a third of the space.
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(folder / NAME, optimize=True)


if __name__ == "__main__":
    main()
