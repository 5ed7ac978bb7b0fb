"""Logging on the x-axis of `metric_keys`: policy updates done before the measurement.

Lightning's own step of an evaluation inside training is one lower, so the step is always given.
"""

from collections.abc import Collection

import lightning as L

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.trainer_state import publish


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
