"""The places where the package reaches into Lightning's trainer, because no public way gives the same."""

from collections.abc import Mapping
from typing import get_args

import lightning as L
import torch


def batches_begun(trainer: L.Trainer) -> int:
    """Return how many training batches the run has begun, those before a checkpoint it continues from included.

    `trainer.global_step` counts optimiser steps, of which a batch may have several.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def steps_done(trainer: L.Trainer) -> int:
    """Return the step at which the next training step is logged; evaluations made now are logged at it, too.

    Under manual optimisation a batch is a step, else an optimiser step is one, for which batches may be accumulated.
    """
    return trainer.global_step if trainer.lightning_module.automatic_optimization else batches_begun(trainer)


def publish(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Let callbacks such as `ModelCheckpoint` monitor scalars.

    `LightningModule.log` would take a quarter of a millisecond for each of some sixty scalars.
    """
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
    trainer.callback_metrics.update(values)


def read_whole_numbers_first() -> None:
    """Let a parser of the trainer's arguments read `limit_val_batches: 1` as one batch.

    Lightning writes `int | float`, but Python keeps one object for all unions of the same types, in the order in which
    they were first named. Where another library said `float | int` before, 1 would become 1.0, which means all batches.
    """
    annotations = L.Trainer.__init__.__annotations__
    for name, annotation in annotations.items():
        if set(get_args(annotation)) == {int, float, type(None)}:
            annotations[name] = int | float | None  # a union in this notation is not shared
