"""One optimizer and, where one is set, a schedule stepped once per update."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
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


def check_optimizer(
    optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None, *, with_closure: bool = True
) -> None:
    """Raise `UserError` for an optimizer or schedule that cannot make a step, before anything is loaded.

    Args:
        optimizer: as in the settings.
        lr_scheduler: likewise.
        with_closure: whether a step is given what computes loss and gradient, as Lightning does where it optimizes.
    """
    parameter = nn.Parameter(torch.ones(1, 1))

    def loss() -> torch.Tensor:
        built.zero_grad()
        value = parameter.square().sum()
        value.backward()
        return value.detach()

    built, schedule = _build([parameter], optimizer, lr_scheduler)
    with _named("optimizer", Exception):  # whatever its type: it is tried on a number of its own
        if with_closure:
            built.step(loss)
        else:
            loss()
            built.step()
    if schedule is not None:
        with _named("lr_scheduler", Exception):
            schedule.step()


def optimizer_setup(
    parameters: Iterator[nn.Parameter], optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
) -> Any:
    """Return what `configure_optimizers` has to.

    Raises:
        UserError: weights are trained in float16, a setting is refused, or the schedule waits for a metric.
    """
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        refuse_float16("dtype", p.dtype)
    built, schedule = _build(trained, optimizer, lr_scheduler)
    if schedule is None:
        return built
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _build(
    parameters: list[nn.Parameter], optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
) -> Any:
    with _named("optimizer", ValueError, TypeError):
        built = optimizer(parameters)
    with _named("lr_scheduler", ValueError, TypeError, ZeroDivisionError):
        schedule = None if lr_scheduler is None else lr_scheduler(built)
    if isinstance(schedule, ReduceLROnPlateau):
        raise UserError(
            "lr_scheduler: got ReduceLROnPlateau, expected a schedule that depends on the number of updates alone, "
            "such as CosineAnnealingLR"
        )
    return built, schedule


@contextmanager
def _named(what: str, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except UserError:  # of an optimizer of this package, and a ValueError
        raise
    except kinds as error:
        said = " ".join(f"{type(error).__name__}: {error}".split() if str(error) else [type(error).__name__])
        said = said.removeprefix("ValueError: ").removeprefix("TypeError: ")
        raise UserError(f"{what}: {said[:300]}; set it in the YAML") from error
