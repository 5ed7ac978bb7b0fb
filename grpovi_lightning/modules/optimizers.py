"""One optimizer and, where one is set, a schedule stepped once per update."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn


def optimizer_setup(
    parameters: Iterator[nn.Parameter], optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
) -> Any:
    """What `configure_optimizers` returns."""
    built = optimizer([p for p in parameters if p.requires_grad])
    if lr_scheduler is None:
        return built
    return {"optimizer": built, "lr_scheduler": {"scheduler": lr_scheduler(built), "interval": "step"}}
