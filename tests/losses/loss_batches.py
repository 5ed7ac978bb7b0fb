"""Ragged random batches, all losses of the family, and their value and gradient."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from grpovi_lightning.losses import BNPOLoss, CISPOLoss, DAPOLoss, DrGRPOLoss, GRPOLoss, GSPOLoss

LONGEST = 11
"""What `max_completion_length` is here: more than the batches have."""


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


LOSSES = {
    "grpo": GRPOLoss,
    "bnpo": BNPOLoss,
    "dapo": DAPOLoss,
    "dr_grpo": lambda **settings: DrGRPOLoss(LONGEST, **settings),
    "gspo": lambda **settings: GSPOLoss(**{"epsilon": 0.2, "epsilon_high": None} | settings),
    "cispo": CISPOLoss,
}
"""name -> loss; GSPO with GRPO's clip range, within which its random batches have sequences on both sides."""


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


def value_and_gradient(loss, batch, **arguments):
    """(value, gradient by the log-probabilities)."""
    logprobs = batch.logprobs.detach().clone().requires_grad_()
    output = loss(logprobs, *batch[1:], **arguments)
    output.loss.backward()
    return output.loss.item(), logprobs.grad
