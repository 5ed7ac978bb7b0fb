"""A round of online learning over several processes: all see everything, one asks."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.structures import Rollout

T = TypeVar("T")


def of_all_ranks(rollout: Rollout, features: Tensor) -> tuple[Rollout, Tensor]:
    """The rollout and features [B, D] of all ranks, one below the other, in the order of a single process."""
    if not _several():
        return rollout, features
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (rollout.to("cpu"), features.cpu()))
    return Rollout.concatenate([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def from_first_rank(compute: Callable[[], T]) -> T:
    """What `compute` returns on rank 0, on every rank: an oracle is asked once. An error there is every rank's."""
    if not _several():
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


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
