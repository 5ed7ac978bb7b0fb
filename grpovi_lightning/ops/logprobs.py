"""Log-probabilities and entropies of tokens, without the logits of all of them at once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_LOGITS_AT_ONCE = 1 << 22


class TokenStatistics(NamedTuple):
    """Per token: log-probability, and the entropy of the distribution it came from; [B, T]."""

    logprobs: Tensor
    entropies: Tensor


def token_statistics(
    logits: Tensor, ids: Tensor, temperature: float = 1.0, entropy_gradient: bool = False
) -> TokenStatistics:
    """Return the log-probability of each id under softmax(logits / temperature), and that softmax's entropy, in nats.

    >>> logits = torch.tensor([[0.25, 0.75]]).log()  # one token, a vocabulary of two
    >>> found = token_statistics(logits, ids=torch.tensor([1]))
    >>> round(found.logprobs.item(), 4), round(found.entropies.item(), 4)  # log 0.75, -sum p log p
    (-0.2877, 0.5623)

    Args:
        logits: [..., V], of any float dtype; the computation is in float32.
        ids: [...] int64.
        temperature: the sampling temperature.
        entropy_gradient: whether the entropies carry gradient, too.

    Returns:
        two [...] float32 tensors.
    """
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    full = logprobs if entropy_gradient else logprobs.detach()
    entropies = -(full.exp() * full.clamp(min=torch.finfo(torch.float32).min)).sum(dim=-1)
    return TokenStatistics(chosen, entropies)


def chunked_statistics(
    states: Tensor,
    head: Callable[[Tensor], Tensor],
    ids: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    logits_at_once: int = _LOGITS_AT_ONCE,
    entropy_gradient: bool = False,
) -> TokenStatistics:
    """Return `token_statistics` of logits = head(states) without the logits [B, T, V] of all tokens at once.

    The head sees only tokens where the mask is true, chunk by chunk. Where there are several chunks, the logits of each
    are not kept but computed again in the backward pass.

    Args:
        states: [B, T, D], the inputs of the head.
        head: [n, D] -> logits [n, V].
        ids: [B, T] int64.
        mask: [B, T] bool.
        temperature: the sampling temperature.
        logits_at_once: numbers in a chunk of logits; the default is 16 MiB in float32.
        entropy_gradient: whether the entropies carry gradient, too.

    Returns:
        two [B, T] float32 tensors, 0 where masked.
    """
    kept_states, kept_ids = states[mask], ids[mask]
    with torch.no_grad():
        vocabulary = head(kept_states[:1]).shape[-1]  # any callable can be a head, so ask it
    size = max(1, logits_at_once // vocabulary)
    chunks = list(zip(kept_states.split(size), kept_ids.split(size), strict=True))

    def statistics_of(some_states: Tensor, some_ids: Tensor) -> TokenStatistics:
        return token_statistics(head(some_states), some_ids, temperature, entropy_gradient)

    if len(chunks) == 1 or not torch.is_grad_enabled():
        parts = [statistics_of(*chunk) for chunk in chunks]
    else:
        parts = [checkpoint(statistics_of, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    logprobs, entropies = (torch.cat(values) for values in zip(*parts, strict=True))
    return TokenStatistics(_scattered(logprobs, mask), _scattered(entropies, mask))


def _scattered(values: Tensor, mask: Tensor) -> Tensor:
    """Put the values [n] of the kept tokens to their places in [B, T], with 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
