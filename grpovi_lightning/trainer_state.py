"""The places where the package reaches into Lightning's trainer, because no public way gives the same."""

from collections.abc import Mapping
from typing import Any, get_args

import lightning as L
import torch


def batches_begun(trainer: L.Trainer) -> int:
    """Return how many training batches the run has begun, those before a checkpoint it continues from included.

    `trainer.global_step` counts optimiser steps, of which a batch may have several.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def data_of(module: L.LightningModule) -> Any:
    """Return the data module of the trainer that the module is attached to; None where there is none."""
    return getattr(module._trainer, "datamodule", None)


def batches_of_run(trainer: L.Trainer, module: L.LightningModule) -> int:
    """Return how many training batches the whole run has: Lightning counts optimiser steps in `max_steps`."""
    updates = getattr(module, "updates_per_rollout", 1)  # a batch may hold several, or be a part of one
    return -(-trainer.max_steps * trainer.accumulate_grad_batches // updates)


def stopped_early(trainer: L.Trainer) -> bool:
    """Tell whether something, such as `max_time` or `EarlyStopping`, asked the run to end before its last step."""
    return trainer.should_stop and batches_begun(trainer) < batches_of_run(trainer, trainer.lightning_module)


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
