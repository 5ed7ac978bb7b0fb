"""One optimizer and, where one is set, a schedule stepped once per update."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from grpovi_lightning.errors import UserError


def refuse_float16(setting: str, value: Any) -> None:
    """Raise `UserError` where the value of a setting says that weights are trained in float16."""
    if str(value) in ("float16", "torch.float16", "16-true", "transformer-engine-float16"):
        raise UserError(
            f"{setting}: got {value} for weights that are trained, which overflow to NaN or lose small updates in it; "
            "set dtype float32 or bfloat16, and trainer.precision 32-true or bf16-mixed"
        )


def optimizer_setup(
    parameters: Iterator[nn.Parameter], optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
) -> Any:
    """Return what `configure_optimizers` has to.

    Raises:
        UserError: weights are trained in float16, or the schedule waits for a metric, which nothing here gives it.
    """
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        refuse_float16("dtype", p.dtype)
    built = optimizer(trained)
    if lr_scheduler is None:
        return built
    schedule = lr_scheduler(built)
    if isinstance(schedule, ReduceLROnPlateau):
        raise UserError(
            "lr_scheduler: got ReduceLROnPlateau, expected a schedule that depends on the number of updates alone, "
            "such as CosineAnnealingLR"
        )
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
