"""The two places where the package reaches into Lightning's trainer, because no public way gives the same."""

from collections.abc import Mapping

import lightning as L
import torch


def batches_begun(trainer: L.Trainer) -> int:
    """Return how many training batches the run has begun, those before a checkpoint it continues from included.

    `trainer.global_step` counts optimiser steps, of which a batch may have several.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def publish(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Let callbacks such as `ModelCheckpoint` monitor scalars.

    `LightningModule.log` would take a quarter of a millisecond for each of some sixty scalars.
    """
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
    trainer.callback_metrics.update(values)
