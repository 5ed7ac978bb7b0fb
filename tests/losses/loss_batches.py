"""Ragged random batches, every loss of the package, and their value and gradient."""

import importlib
import inspect
import pkgutil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from grpovi_lightning import losses
from grpovi_lightning.losses import GRPOLoss, PolicyLoss
from grpovi_lightning.losses.clipped import ClippedLoss

LONGEST = 11
"""What `max_completion_length` is here: more than the batches have."""
REQUIRED = {"max_completion_length": LONGEST, "entropy_coef": 0.3}
"""What is given for parameters that losses require."""


class Batch(NamedTuple):
    """The arguments of a loss, in its order."""

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    completion_mask: Tensor
    ref_logprobs: Tensor | None

    def rows(self, index) -> "Batch":
        return Batch(*(None if tensor is None else tensor[index] for tensor in self))

    def to(self, dtype) -> "Batch":
        return Batch(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in self))


def classes_of(room, base) -> dict[str, type]:
    """name of its file -> class, of every class of a room that can be made from `base`."""
    found = {}
    for module in pkgutil.iter_modules(room.__path__):
        for kind in vars(importlib.import_module(f"{room.__name__}.{module.name}")).values():
            is_own = inspect.isclass(kind) and kind.__module__ == f"{room.__name__}.{module.name}"
            if is_own and issubclass(kind, base) and not inspect.isabstract(kind):
                found[kind.__name__ if module.name in found else module.name] = kind
    return found


def factory(kind):
    """Settings -> a loss of this class; a loss that stands beside another one is put beside GRPO's."""
    parameters = inspect.signature(kind).parameters
    needed = {name: REQUIRED[name] for name, p in parameters.items() if p.default is p.empty and name != "loss"}
    if "loss" in parameters:
        return lambda **settings: kind(GRPOLoss(**settings), **needed)
    return lambda **settings: kind(**needed | settings)


KINDS = classes_of(losses, PolicyLoss)
LOSSES = {name: factory(kind) for name, kind in KINDS.items()}
LOSSES["gspo"] = lambda **settings: KINDS["gspo"](**{"epsilon": 0.2, "epsilon_high": None} | settings)
"""name -> loss: every file of the room has one. GSPO has GRPO's clip range, within which its random batches have
sequences on both sides."""
CLIPPED = [name for name, kind in KINDS.items() if issubclass(kind, ClippedLoss)]
PENALISED = [name for name, make in LOSSES.items() if make().penalties]
"""Those with a gradient where there is neither an advantage nor a KL penalty."""


def entropies_of(batch, logprobs=None):
    """Entropies [B, T] that depend on the log-probabilities: those of two outcomes, of which a token is the one."""
    logprobs = batch.logprobs if logprobs is None else logprobs
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    logprobs = torch.where(batch.completion_mask, logprobs.to(dtype), -1.0)  # in padding there may be anything
    p = logprobs.exp().clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def computed(loss, batch, logprobs=None, **arguments):
    """The output of a loss, which gets entropies where it needs them."""
    logprobs = batch.logprobs if logprobs is None else logprobs
    if loss.needs_entropies:
        arguments = {"entropies": entropies_of(batch, logprobs)} | arguments
    return loss(logprobs, *batch[1:], **arguments)


def random_batch(seed, n_rows=6, length=9, off_policy=0.6) -> Batch:
    """Float64; every length from 1 up, the policies differ by `off_policy` nats a token."""
    rng = np.random.default_rng(seed)
    lp = -rng.exponential(1.0, (n_rows, length))
    old, ref = lp + off_policy * rng.normal(size=lp.shape), lp + 0.5 * rng.normal(size=lp.shape)
    mask = np.arange(length) < rng.integers(1, length + 1, (n_rows, 1))
    return Batch(*map(torch.tensor, (lp, old, rng.normal(size=n_rows), mask, ref)))


def random_weights(seed, batch) -> Tensor:
    """[B, T] factors around 1."""
    return torch.tensor(np.random.default_rng(seed + 1000).uniform(0.3, 1.7, batch.logprobs.shape))


def random_selection(seed, batch) -> Tensor:
    """[B, T] bool, about half of the tokens."""
    return torch.tensor(np.random.default_rng(seed + 2000).uniform(size=batch.logprobs.shape) < 0.5)


def shares_ratios(make) -> bool:
    """Whether a token's gradient depends on the ratio of another token of its sequence."""
    batch = random_batch(0, off_policy=0.01)._replace(completion_mask=torch.ones(6, 9, dtype=torch.bool))
    moved = batch._replace(old_logprobs=batch.old_logprobs + 0.01 * (torch.arange(9) == 0))
    before, after = (value_and_gradient(make(), some)[1][:, 1:] for some in (batch, moved))
    return not torch.equal(before, after)


def value_and_gradient(loss, batch, **arguments):
    """(value, gradient by the log-probabilities, that through the entropies included)."""
    logprobs = batch.logprobs.detach().clone().requires_grad_()
    output = computed(loss, batch, logprobs, **arguments)
    output.loss.backward()
    return output.loss.item(), logprobs.grad


SHARING = [name for name, make in LOSSES.items() if shares_ratios(make)]
"""Those that give the tokens of a sequence one ratio."""
