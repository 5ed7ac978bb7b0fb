"""Weights that are spread over processes by FSDP2: every special case of them.

A process keeps a part of each weight, of its gradient and of its optimiser state. To compute, it gathers whole weights
from the others. So gathering is something that all processes have to do together, in the same order.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from transformers import PreTrainedModel

from grpovi_lightning.distributed import is_first_rank, largest_over_ranks
from grpovi_lightning.errors import UserError
from grpovi_lightning.models.sharded_state import whole, whole_state

Placement = Literal["sharded", "replicated", "offloaded"]


@dataclass(frozen=True)
class Sharding:
    """How the models of a run are placed under `trainer.strategy: fsdp2`. The policy is always sharded.

    Attributes:
        gather: `once`: the whole weights are gathered once for each rollout, pass and update, which needs memory for
            them in the precision of the forward pass. `layers`: a layer's are gathered when it runs and dropped after
            it. Decoding then gathers for every token, and updates run a prompt with each of its completions.
        reference: where the reference policy is: `sharded` like the policy; `replicated`: each process has all of it;
            `offloaded`: sharded, and in main memory while it is not used.
        reward: where the reward's models are. Sharded ones are gathered whole while completions are scored.
    """

    gather: Literal["once", "layers"] = "once"
    reference: Placement = "sharded"
    reward: Placement = "replicated"

    def check(self, is_used: bool) -> None:
        """Raise `UserError` for settings of a run whose strategy does not shard."""
        if not is_used and self != Sharding():
            raise UserError(f"sharding: got {self} without `strategy: fsdp2`, so it has no effect; leave it out")

    def spread(
        self, policy: Any, mesh: DeviceMesh | None, precision: str, reference: Any = None, reward: Any = None
    ) -> None:
        """Spread the models of a run over the processes of a mesh, once; without a mesh they stay whole.

        Args:
            policy: the `LanguageModel` that is trained.
            mesh: the processes, in one dimension.
            precision: the trainer's. In `bf16-mixed`, weights are gathered in bfloat16.
            reference: the reference's `LanguageModel`; anything else, such as none or one in the policy, has no weights
                of its own.
            reward: a module whose pretrained models are found in it, or None.
        """
        if mesh is None or policy.is_sharded:
            return
        how = _how(mesh, precision)
        policy.weights = ShardedWeights(policy, policy.model, how, self.gather)
        if isinstance(reference, nn.Module) and self.reference != "replicated":
            own: Any = reference
            placed = how.offloaded(self.reference == "offloaded")
            own.weights = ShardedWeights(reference, own.model, placed, self.gather)
        if reward is not None and self.reward != "replicated":
            for model in _outermost(reward, lambda module: isinstance(module, PreTrainedModel)):
                # Rewards have their own precision.
                _shard(model, _How(mesh, None).offloaded(self.reward == "offloaded"), reshard_after_forward=False)


@dataclass(frozen=True)
class _How:
    mesh: DeviceMesh
    dtype: torch.dtype | None
    """In which weights are gathered; None: as they are."""
    offload: bool = False

    def offloaded(self, offload: bool) -> "_How":
        return _How(self.mesh, self.dtype, offload)

    def settings(self) -> dict[str, Any]:
        # Casting inputs would turn the lowest number of a float32 mask into minus infinity.
        reduce = None if self.dtype is None else torch.float32
        precision = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=reduce, cast_forward_inputs=False)
        pin = self.mesh.device_type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pin) if self.offload else OffloadPolicy()
        return {"mesh": self.mesh, "mp_policy": precision, "offload_policy": offload}


def _how(mesh: DeviceMesh, precision: str) -> _How:
    return _How(mesh, torch.bfloat16 if precision == "bf16-mixed" else None)


class WholeWeights:
    """The weights of a model that each process has all of."""

    together = False
    """Whether all processes must make the same number of forward passes."""
    shares_prefix = True
    """Whether an update may run a prompt once for its group, as far as the weights are concerned."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._model.device

    def gathered(self) -> AbstractContextManager[None]:
        """Inside, the weights are at hand; all processes enter together."""
        return nullcontext()

    def plain_model(self) -> PreTrainedModel | None:
        """Return the model with whole weights, to be written; None where another process writes it."""
        return self._model


class ShardedWeights(WholeWeights):
    """The weights of a model that are spread over processes."""

    def __init__(self, root: nn.Module, model: PreTrainedModel, how: _How, gather: Literal["once", "layers"]) -> None:
        """Spread the weights.

        Args:
            root: the module whose forward passes begin and end the use of the outermost weights.
            model: the model in it.
            how: the processes, and in which precision weights are gathered.
            gather: see `Sharding`.
        """
        super().__init__(model)
        self._skeleton = _skeleton(model)
        self._once, self._depth = gather == "once", 0
        self.together, self.shares_prefix = not self._once, self._once
        for layer in _layers(model):
            _shard(layer, how, reshard_after_forward=not self._once)
        _shard(root, how, reshard_after_forward=False)
        self._modules = [module for module in root.modules() if isinstance(module, FSDPModule)]
        self._device = _device(how.mesh)
        if self._once:
            # The gradient of a prompt's pass arrives through the cache, before the hooks that would gather again.
            root.set_reshard_after_backward(False)  # type: ignore[operator]
        for module in self._modules:
            # Whole weights take over here which of them are trained; later, an adapter may be switched off meanwhile.
            module.unshard()
            module.reshard()

    @property
    def device(self) -> torch.device:
        return self._device

    @contextmanager
    def gathered(self) -> Iterator[None]:
        if self._once and not self._depth:
            for module in self._modules:
                module.unshard()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                for module in self._modules:
                    module.reshard()

    def plain_model(self) -> PreTrainedModel | None:
        state = whole_state(self._model.state_dict())
        if not is_first_rank():
            return None
        plain = copy.deepcopy(self._skeleton)
        plain.load_state_dict(state, assign=True)
        plain.tie_weights()
        return plain.requires_grad_(False)


def largest_together(weights: WholeWeights, number: int) -> int:
    """Return the largest number over the processes that make forward passes together; else this one's."""
    return largest_over_ranks(number) if weights.together else number


@contextmanager
def gathered_within(module: nn.Module) -> Iterator[None]:
    """Inside, sharded models somewhere in a module are whole; all processes enter together."""
    modules = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in modules:
        part.unshard()
    try:
        yield
    finally:
        for part in modules:
            part.reshard()


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a norm of at most `max_norm`, and return the norm before that, over all processes."""
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def move_unsharded(module: nn.Module, device: torch.device) -> None:
    """Move what is not sharded to a device; sharded weights are where they belong already."""
    for child in module.children():
        if not isinstance(child, FSDPModule):
            move_unsharded(child, device)
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.data = tensor.data.to(device)


def _shard(module: nn.Module, how: _How, reshard_after_forward: bool) -> None:
    try:
        fully_shard(module, reshard_after_forward=reshard_after_forward, **how.settings())
    except (ValueError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"strategy fsdp2: {type(module).__name__} cannot be sharded: {reason}; use `strategy: ddp`"
        ) from error


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers that `transformers` says belong together on one device."""
    kinds = set(getattr(model, "_no_split_modules", None) or [])
    return _outermost(model, lambda module: type(module).__name__ in kinds)


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[Any]:
    """Return the wanted modules in a module, or itself, but none within another."""
    if wanted(module):
        return [module]
    return [found for child in module.children() for found in _outermost(child, wanted)]


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model without its weights."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)  # type: ignore[arg-type]


def _device(mesh: DeviceMesh) -> torch.device:
    """Return where this process computes."""
    kind = mesh.device_type
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
