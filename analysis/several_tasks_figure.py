"""The picture of methods over several tasks."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from analysis.figures import SIZE
from analysis.several_tasks import Profile
from analysis.style import DASHES, FAINT, PALETTE, RC


@matplotlib.rc_context(RC)
def profiles_figure(profiles: Sequence[Profile]) -> Figure:
    """Draw performance profiles: the share of runs above a score, against the score; higher is better."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set(title="Performance profiles", xlabel="score", ylabel="share of runs above it", ylim=(-0.02, 1.02))
    axes.grid(True, axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for i, profile in enumerate(profiles):
        axes.step(
            profile.thresholds,
            profile.shares,
            where="post",
            linewidth=1.8,
            label=profile.method,
            color=PALETTE[i % len(PALETTE)],
            linestyle=DASHES[i % len(DASHES)][0],
        )
    figure.legend(loc="outside lower left", ncols=2, fontsize=8.5, handlelength=3.2)
    return figure
