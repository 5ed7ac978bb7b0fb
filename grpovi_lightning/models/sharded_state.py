"""States whose tensors are spread over processes by FSDP2, and how whole ones become such and the other way round.

A state is what `state_dict` of a module or an optimiser returns: dicts and lists with tensors and plain values in them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._pytree import keystr, tree_map, tree_map_with_path

from grpovi_lightning.distributed import is_first_rank
from grpovi_lightning.models.checkpoint_folder import DTYPES, PartedTensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(state: Any) -> Any:
    """Return a nested state with whole tensors, in main memory, on the first process; what others get is of no use."""
    first = is_first_rank()

    def collected(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()
        return tensor.cpu() if first else None

    return tree_map(collected, state)


def own_parts(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Take the tensors that are spread by their rows out of a nested state.

    Returns:
        The state, with tensors without numbers (of the device `meta`) in their place, which say shape and type of the
        whole ones; and this process's rows, by the place in the state. The rows of all processes, in their order, are
        the whole tensor. What is spread in another way is gathered, as `whole_state` does.
    """
    parts: dict[str, Tensor] = {}

    def taken(path: Any, value: Any) -> Any:
        if not _has_rows(value) or value.dtype not in DTYPES:
            return whole_state(value)
        parts[keystr(path)] = value.to_local()
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    return tree_map_with_path(taken, state), parts


def spread_like(tensor: Any, like: Any) -> Any:
    """Return this process's part of a whole tensor, spread as `like` is; anything else as it is, but in memory.

    Args:
        tensor: may be one of a checkpoint's folder, of which nothing but this process's rows is read.
        like: a tensor of the model that the state is for.
    """
    if isinstance(tensor, PartedTensor):
        if not _has_rows(like) or tensor.shape != like.shape:
            return spread_like(tensor.whole(), like)
        rows = tensor.rows(*_own_rows(like)).to(like.to_local().device)
        return DTensor.from_local(
            rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    is_whole = isinstance(tensor, Tensor) and not isinstance(tensor, DTensor)
    if not is_whole or not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    local = tensor.to(like.to_local().device)
    return distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)


def spread_state(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a model's state of whole tensors, with those spread that the model has spread."""
    own = model.state_dict()
    return {name: spread_like(value, own.get(name)) for name, value in state.items()}


def spread_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state of whole tensors, with those spread that have the shape of a spread parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {
        place: {name: spread_like(value, parameters[place]) for name, value in of_parameter.items()}
        for place, of_parameter in state["state"].items()
    }
    return {**state, "state": found}


def _has_rows(value: Any) -> bool:
    """Tell whether a tensor is spread by its rows over processes in one dimension, as FSDP2 does."""
    return isinstance(value, DTensor) and value.placements == (Shard(0),)


def _own_rows(tensor: DTensor) -> tuple[int, int]:
    """Return the first row of this process and the one after its last: torch gives each an equal number, rounded up."""
    each = -(-tensor.shape[0] // tensor.device_mesh.size())
    first = min(tensor.device_mesh.get_local_rank() * each, tensor.shape[0])
    return first, first + tensor.to_local().shape[0]
