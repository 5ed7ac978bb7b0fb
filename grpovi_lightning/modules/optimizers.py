"""One optimizer and, where one is set, a schedule stepped once per update."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from grpovi_lightning.errors import UserError


def optimizer_setup(
    parameters: Iterator[nn.Parameter], optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
) -> Any:
    """Return what `configure_optimizers` has to.

    Raises:
        UserError: the schedule waits for a metric, which nothing here gives it.
    """
    built = optimizer([p for p in parameters if p.requires_grad])
    if lr_scheduler is None:
        return built
    schedule = lr_scheduler(built)
    if isinstance(schedule, ReduceLROnPlateau):
        raise UserError(
            "lr_scheduler: got ReduceLROnPlateau, expected a schedule that depends on the number of updates alone, "
            "such as CosineAnnealingLR"
        )
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
