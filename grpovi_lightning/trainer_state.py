"""The places where the package reaches into Lightning's trainer, because no public way gives the same."""

import importlib
import inspect
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy


def batches_begun(trainer: L.Trainer) -> int:
    """Return how many training batches the run has begun, those before a checkpoint it continues from included.

    `trainer.global_step` counts optimiser steps, of which a batch may have several.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def data_of(module: L.LightningModule) -> Any:
    """Return the data module of the trainer that the module is attached to; None where there is none."""
    return getattr(module._trainer, "datamodule", None)


def precision_of(module: L.LightningModule) -> str:
    """Return the precision of the trainer that the module is attached to; 32-true where there is none."""
    return "32-true" if module._trainer is None else module._trainer.precision


def shards(trainer: L.Trainer) -> bool:
    """Tell whether the trainer's strategy leaves it to the module to spread its weights over the processes."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def saves_folders(trainer: L.Trainer) -> bool:
    """Tell whether a checkpoint of the trainer is a folder, into which each process writes its part."""
    return bool(getattr(trainer.strategy, "_save_distributed_checkpoint", False))


def batches_of_run(trainer: L.Trainer, module: L.LightningModule) -> int:
    """Return how many training batches the whole run has: Lightning counts optimiser steps in `max_steps`."""
    updates = getattr(module, "updates_per_rollout", 1)  # a batch may hold several, or be a part of one
    return -(-trainer.max_steps * trainer.accumulate_grad_batches // updates)


def stopped_early(trainer: L.Trainer) -> bool:
    """Tell whether something, such as `max_time` or `EarlyStopping`, asked the run to end before its last step."""
    return trainer.should_stop and batches_begun(trainer) < batches_of_run(trainer, trainer.lightning_module)


def received_sigterm(trainer: L.Trainer) -> bool:
    """Tell whether this process was asked to end the run; `StopOnSigterm` takes that from Lightning."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(getattr(callback, "received_sigterm", False) for callback in callbacks)


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


def read_loggers_without_a_place() -> None:
    """Let a parser of the trainer's arguments read `logger: CSVLogger`; `place_logger` says where it writes."""
    for logger in (CSVLogger, TensorBoardLogger):
        if inspect.signature(logger).parameters["save_dir"].default is inspect.Parameter.empty:
            logger.__init__.__defaults__ = ("", *(logger.__init__.__defaults__ or ()))  # `save_dir` comes first


def place_logger(logger: Namespace, folder: Path) -> None:
    """Let a logger of a parsed configuration write into the run's folder, unless it names a place itself.

    Event files go into the folder itself: TensorBoard then shows runs as `arms/grpo/seed_1`, and the report finds them.
    """
    module, _, name = logger.class_path.rpartition(".")
    defaults = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    given: Namespace = logger.init_args
    if "save_dir" not in given or given.save_dir != defaults["save_dir"].default:
        return
    settings: dict[str, Any] = {"save_dir": str(folder)}
    if name == TensorBoardLogger.__name__:
        settings |= {"name": "", "version": "", "default_hp_metric": False}
    for key, value in settings.items():
        if given[key] == defaults[key].default:
            given[key] = value


def leave_children_alone(trainer: L.Trainer) -> None:
    """Stop Lightning from killing all processes of this machine without a word when one of them ends.

    Its thread kills the main process, too, within five seconds. It has no switch.
    """
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []  # with nothing to look after, it ends


def local_children(trainer: L.Trainer) -> list[subprocess.Popen[bytes]]:
    """Return the other processes of this machine, in the one that has started them."""
    return list(getattr(trainer.strategy.launcher, "procs", []))
