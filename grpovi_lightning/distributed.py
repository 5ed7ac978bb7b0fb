"""What the processes of a run tell each other.

Every rank must make the same calls, in the same order, with like shapes. On a single process every function here
returns what it was given.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.metric_keys import over_ranks

T = TypeVar("T")

_REDUCTIONS = {"mean": torch.mean, "min": torch.amin, "max": torch.amax}
_holds_all_rows: ContextVar[bool] = ContextVar("holds_all_rows", default=False)


def world_size() -> int:
    """Return the number of ranks; 1 inside `on_gathered_rows`."""
    if _holds_all_rows.get() or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def is_first_rank() -> bool:
    """Tell whether this process is the one that writes for all."""
    return world_size() == 1 or dist.get_rank() == 0


@contextmanager
def on_gathered_rows() -> Iterator[None]:
    """Compute as a single process does: inside, tensors hold the rows of all ranks already.

    A statistic over the batch would otherwise count every row once for each rank.
    """
    token = _holds_all_rows.set(True)
    try:
        yield
    finally:
        _holds_all_rows.reset(token)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise sum over all ranks, in the dtype of `values`."""
    return _all_reduced(values, dist.ReduceOp.SUM) if world_size() > 1 else values


def max_over_ranks(values: Tensor) -> Tensor:
    """Return the elementwise maximum over all ranks."""
    return _all_reduced(values, dist.ReduceOp.MAX) if world_size() > 1 else values


def largest_over_ranks(number: int) -> int:
    """Return the largest of a whole number over all ranks."""
    return int(max_over_ranks(torch.tensor(number, device=_device()))) if world_size() > 1 else number


def share_of_rank(count: Tensor) -> Tensor:
    """Return the sum over all ranks divided by their number, float64.

    A rank divides its loss by this: gradients are averaged over the ranks afterwards.
    """
    return sum_over_ranks(count.double()) / world_size()


def mean_over_ranks(mean: Tensor, count: Tensor) -> Tensor:
    """Return means over the rows of all ranks, from those over this rank's `count` rows (tokens, pairs)."""
    if world_size() == 1:
        return mean
    total = sum_over_ranks(torch.cat([(mean.double() * count).flatten(), count.double().flatten()]))
    return (total[:-1] / total[-1]).view_as(mean).to(mean.dtype)


def gather_rows(tensor: Tensor) -> Tensor:
    """Return the rows of all ranks below each other: [P, ...] -> [P * ranks, ...]."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def rows_of_rank(n_rows: int) -> range:
    """Return which rows of those that `gather_rows` gives are this rank's, where it has `n_rows` as every rank has."""
    first = dist.get_rank() * n_rows if world_size() > 1 else 0
    return range(first, first + n_rows)


def batches_of_rank(n_rows: int, size: int, rank: int, n_ranks: int) -> list[list[int]]:
    """Deal rows out to the ranks one by one, and divide those of a rank into batches of at most `size`.

    All ranks have the same number of batches, so that they can run a model together, as far as each has a row for each.

    >>> [batches_of_rank(5, 2, rank, 2) for rank in (0, 1)]
    [[[0, 2], [4]], [[1], [3]]]
    """
    mine = range(rank, n_rows, n_ranks)
    most = -(-len(range(0, n_rows, n_ranks)) // size)  # of the first rank, which has the most rows
    if -(-len(mine) // size) == most:
        return [list(mine[start : start + size]) for start in range(0, len(mine), size)]
    n_batches = min(most, len(mine))
    return [list(mine[len(mine) * i // n_batches : len(mine) * (i + 1) // n_batches]) for i in range(n_batches)]


def gather_named_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of all ranks of several tensors, by one collective: [P, ...] -> [P * ranks, ...] each.

    They have the same P, hold numbers that float64 can hold, and keep their dtypes.
    """
    if world_size() == 1:
        return dict(tensors)
    flat = [tensor.double().flatten(start_dim=1) for tensor in tensors.values()]
    parts = gather_rows(torch.cat(flat, dim=1)).split([part.shape[1] for part in flat], dim=1)
    return {
        name: part.to(tensor.dtype).unflatten(1, tensor.shape[1:])
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def reduce_scalars(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return scalars that each rank has its own number of, reduced as `metric_keys` declares, by one collective."""
    if world_size() == 1:
        return dict(scalars)
    values = torch.tensor([list(scalars.values())], dtype=torch.float64, device=_device())
    columns = gather_rows(values).unbind(dim=1)
    return {name: _REDUCTIONS[over_ranks(name)](column).item() for name, column in zip(scalars, columns, strict=True)}


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks. Tensors in them must lie on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first_rank(compute: Callable[[], T]) -> T:
    """Return on every rank what `compute` returns on rank 0, which alone calls it.

    Raises:
        TrainingError: `compute` raised; rank 0 raises the error itself.
    """
    if world_size() == 1:
        return compute()
    found: list[Any] = [None, None]
    mine: Exception | None = None
    if dist.get_rank() == 0:
        try:
            found[0] = compute()
        except Exception as error:  # raised again below, on every rank: the others would wait for ever
            mine, found[1] = error, f"rank 0: {error}"
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise mine or TrainingError(found[1])
    return found[0]


def _all_reduced(values: Tensor, operation: Any) -> Tensor:
    result = values.clone()  # torch reduces in place
    dist.all_reduce(result, operation)
    return result


def _device() -> torch.device:
    """Where the backend reads from: NCCL knows GPUs only."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
