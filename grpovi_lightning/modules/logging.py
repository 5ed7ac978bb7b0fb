"""Logging on the x-axis of `metric_keys`: policy updates done before the measurement.

Lightning's own step of an evaluation inside training is one lower, so the step is always given.
"""

from collections.abc import Collection

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]  generated code

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.trainer_state import publish, steps_done


def log_scalars(module: L.LightningModule, metrics: dict[str, float], step: int, shown: Collection[str] = ()) -> None:
    """Send scalars to the loggers at `step`, and to Lightning; `shown` ones appear on the progress bar."""
    for logger in module.loggers:
        logger.log_metrics(metrics, step=step)
    publish(module.trainer, metrics)
    for name in shown:
        module.log(name, metrics[name], logger=False, prog_bar=True, batch_size=1)


def log_held_out(module: L.LightningModule, metrics: dict[str, float], step: int, shown: Collection[str] = ()) -> None:
    """Send the means of an evaluation under `eval/`, or under `test/` when the test table was evaluated."""
    prefix = keys.TEST_PREFIX if module.trainer.testing else keys.EVAL_PREFIX
    named = {prefix + name: value for name, value in metrics.items()}
    log_scalars(module, named, step)
    for name in shown:  # all ranks have the same number: their maximum is exact, and Lightning asks for a reduction
        module.log(prefix + name, metrics[name], logger=False, prog_bar=True, sync_dist=True, reduce_fx="max")


def mark_restart(trainer: L.Trainer) -> None:
    """Note in the event files that this attempt of the run supersedes what earlier ones logged from here on.

    TensorBoard hides the earlier values from the mark's step on. That is the first one after the checkpoint: the
    evaluation at the checkpoint's own step was made before it was saved, and is not made again.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            mark = Event(session_log=SessionLog(status=SessionLog.START))
            logger.experiment.file_writer.add_event(mark, steps_done(trainer) + 1)
