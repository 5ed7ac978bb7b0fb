"""Pictures of held-out preference pairs for TensorBoard: how right a reward model is, and what it goes by."""

from math import isnan

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpovi_lightning.modules.held_out_pairs import N_BINS, PairScores, calibration

_CHOSEN, _REJECTED = "#0072b2", "#d55e00"  # told apart by people who see no red or no green
_MOST_POINTS = 1000
"""Points of each colour in a scatter plot; more hide each other, and take time."""


def show_pictures(module: L.LightningModule, pairs: PairScores, prefix: str, step: int) -> None:
    """Send the pictures of an evaluation to the module's TensorBoard loggers, from rank 0."""
    loggers = [logger for logger in module.loggers if isinstance(logger, TensorBoardLogger)]
    if not loggers or not module.trainer.is_global_zero:
        return
    pictures = {
        "calibration": calibration_picture(pairs),
        "scores": score_picture(pairs),
        "score_by_length": length_picture(pairs),
    }
    for logger in loggers:
        for name, figure in pictures.items():
            logger.experiment.add_figure(prefix + name, figure, step)


def calibration_picture(pairs: PairScores) -> Figure:
    """Draw the share of right predictions against the predicted probability; a point's area is its share of pairs."""
    found = calibration(pairs.chosen, pairs.rejected)
    figure, axes = _empty()
    axes.plot([0.5, 1.0], [0.5, 1.0], color="0.6", linewidth=1, label="calibrated")
    axes.plot(found.predicted, found.right, color=_CHOSEN, linewidth=1)
    axes.scatter(found.predicted, found.right, s=20 + 300 * found.counts / found.counts.sum(), color=_CHOSEN)
    axes.set(xlabel="predicted probability of the preferred completion", ylabel="share right")
    axes.set(xlim=(0.48, 1.02), ylim=(min(0.48, float(found.right.min()) - 0.04), 1.04))
    axes.set_title(f"{len(pairs.chosen)} pairs in {N_BINS} bins, calibration error {found.error:.3f}")
    axes.legend(loc="lower right")
    return figure


def score_picture(pairs: PairScores) -> Figure:
    """Draw the histograms of the scores of chosen and rejected completions."""
    figure, axes = _empty()
    both = torch.cat([pairs.chosen, pairs.rejected])
    middle, width = float(both.mean()), max(float(both.max() - both.min()), 1e-6)
    low, high = (float(both.min()), float(both.max())) if width > 1e-6 else (middle - 0.5, middle + 0.5)
    edges = torch.linspace(low, high, 31).tolist()
    for scores, colour, label in ((pairs.chosen, _CHOSEN, "chosen"), (pairs.rejected, _REJECTED, "rejected")):
        axes.hist(scores.tolist(), edges, color=colour, alpha=0.55, label=label)
    axes.set(xlabel="score", ylabel="completions")
    axes.set_title(f"mean difference {float((pairs.chosen - pairs.rejected).mean()):.3g}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def length_picture(pairs: PairScores) -> Figure:
    """Draw scores against lengths."""
    figure, axes = _empty()
    for lengths, scores, colour, label in (
        (pairs.rejected_lengths, pairs.rejected, _REJECTED, "rejected"),
        (pairs.chosen_lengths, pairs.chosen, _CHOSEN, "chosen"),
    ):
        some = slice(0, _MOST_POINTS)
        axes.scatter(lengths[some], scores[some], s=9, color=colour, alpha=0.5, linewidths=0, label=label)
    axes.set(xlabel="length of the completion, tokens", ylabel="score")
    correlation = pairs.length_correlation
    axes.set_title(
        "no correlation: all equal" if isnan(correlation) else f"correlation of score with length {correlation:.3f}"
    )
    axes.legend()
    return figure


def _empty() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.0, 3.6), dpi=100, layout="constrained")
    return figure, figure.add_subplot()
