"""The picture of methods over several tasks."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from analysis.figures import new_figure, with_legend
from analysis.several_tasks import Profile
from analysis.style import DASHES, PALETTE, RC


@matplotlib.rc_context(RC)
def profiles_figure(profiles: Sequence[Profile]) -> Figure:
    """Draw performance profiles: the share of runs above a score, against the score; higher is better."""
    figure, axes = new_figure("Performance profiles", "score", "share of runs above it")
    axes.set_ylim(-0.02, 1.02)
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
    return with_legend(figure, axes)
