"""Reductions over the processes of a run. Every rank must call them at the same point with the same keys."""

import lightning as L
import torch
from torch import Tensor

_REDUCTIONS = {"max": torch.amax, "min": torch.amin}


def sum_over_ranks(module: L.LightningModule, value: Tensor) -> Tensor:
    """Sum of a tensor over all ranks."""
    # A copy, because torch adds up in place.
    return module.trainer.strategy.reduce(value.clone(), reduce_op="sum")  # type: ignore[return-value]


def share_of_rank(module: L.LightningModule, count: Tensor) -> Tensor:
    """Sum over all ranks divided by their number: what a rank divides by, because gradients are averaged later."""
    return sum_over_ranks(module, count.double()) / module.trainer.world_size


def max_over_ranks(module: L.LightningModule, value: int) -> int:
    """Largest of a number over all ranks."""
    if module.trainer.world_size == 1:
        return value
    return int(module.trainer.strategy.reduce(torch.tensor(value, device=module.device), reduce_op="max"))  # type: ignore[arg-type]


def gather_over_ranks(module: L.LightningModule, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all ranks below each other, in one collective.

    Args:
        module: the module that trains.
        tensors: name -> [P, ...], numbers that float64 holds; every rank has the same shapes.

    Returns:
        name -> [P * number of ranks, ...] in the dtype it had.
    """
    if module.trainer.world_size == 1:
        return tensors
    flat = [tensor.double().flatten(start_dim=1) for tensor in tensors.values()]
    gathered = module.trainer.strategy.all_gather(torch.cat(flat, dim=1)).flatten(end_dim=1)
    parts = gathered.split([part.shape[1] for part in flat], dim=1)
    return {
        name: part.to(tensor.dtype).unflatten(1, tensor.shape[1:])
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def metrics_over_ranks(module: L.LightningModule, metrics: dict[str, float]) -> dict[str, float]:
    """One collective for all scalars of a step: the mean, or the extreme where the name says so."""
    if module.trainer.world_size == 1:
        return metrics
    values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=module.device)
    gathered = module.trainer.strategy.all_gather(values)
    reduced = [_REDUCTIONS.get(_statistic(name), torch.mean)(gathered[:, i]).item() for i, name in enumerate(metrics)]
    return dict(zip(metrics, reduced, strict=True))


def _statistic(name: str) -> str:
    """The word max or min after the last slash, as in completions/max_length; residuals are the largest ones."""
    words = name.split("/")[-1].split("_")
    return "max" if words[0] == "residual" else next((word for word in words if word in _REDUCTIONS), "mean")
