"""Log-probabilities and entropies of tokens from logits."""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenStatistics(NamedTuple):
    """Per token: log-probability and, without gradient, the entropy of the distribution it came from; [B, T]."""

    logprobs: Tensor
    entropies: Tensor


def token_statistics(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> TokenStatistics:
    """Log-probability of each id under softmax(logits / temperature), and that softmax's entropy, in nats.

    Computed in float32 whatever the dtype of the logits.

    Args:
        logits: [B, T, V].
        ids: [B, T] int64.
        temperature: the sampling temperature.

    Returns:
        two [B, T] float32 tensors; only the log-probabilities carry gradient.
    """
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    chosen = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        entropies = -(logprobs.exp() * logprobs.clamp(min=torch.finfo(torch.float32).min)).sum(dim=-1)
    return TokenStatistics(chosen, entropies)
