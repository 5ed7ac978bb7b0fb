"""Which tokens the policy loss is taken on."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from grpovi_lightning.distributed import gather_rows, largest_over_ranks
from grpovi_lightning.errors import UserError

_SAME = 1e-4
"""Nats. Completions of a prompt begin with the same distribution, which rounding may tell apart by less than this."""


class TokenSelection(ABC):
    """Which tokens the surrogate of a loss counts, chosen before the first update on a rollout.

    A penalty, such as that of the KL, and the denominator count the other tokens, too.
    """

    @abstractmethod
    def __call__(self, entropies: Tensor, mask: Tensor) -> Tensor:
        """Return the selected tokens, [B, T] bool.

        Every rank makes this call at the same point, so it may use collectives.

        Args:
            entropies: [B, T] of the distributions before the first update, nats.
            mask: [B, T] bool, the tokens that are learned from, at least one over all ranks.
        """


class HighEntropyTokens(TokenSelection):
    """The tokens at which the policy is least certain: "forking tokens" (arXiv 2506.01939; `top_entropy_quantile`).

    Selected are the given share of the rollout's tokens, over all ranks, and those with the same entropy. With 1 it is
    the plain loss. The paper chooses in each update, by the entropies of its own policy, and TRL in each micro-batch;
    here one choice holds for all updates on a rollout, so that micro-batches do not matter. With one update per
    rollout that is the paper's. It takes a forward pass more, without gradient.

    >>> entropies = torch.tensor([[0.1, 2.0, 0.5, 1.0, 0.2]])
    >>> HighEntropyTokens(top_entropy_quantile=0.4)(entropies, mask=entropies > 0.0).tolist()  # two of five
    [[False, True, False, True, False]]
    """

    def __init__(self, top_entropy_quantile: float = 0.2) -> None:
        """Set the share, in (0, 1], named as in TRL; the default is the paper's."""
        if not 0.0 < top_entropy_quantile <= 1.0:
            raise UserError(f"top_entropy_quantile: got {top_entropy_quantile}, expected a share in (0, 1]")
        self.top_entropy_quantile = top_entropy_quantile

    def __call__(self, entropies: Tensor, mask: Tensor) -> Tensor:
        own = entropies[mask]
        everywhere = own.new_full((largest_over_ranks(len(own)),), -torch.inf)  # as long on every rank
        everywhere[: len(own)] = own
        everywhere = gather_rows(everywhere)
        count = int((everywhere > -torch.inf).sum())
        smallest = everywhere.topk(max(1, round(self.top_entropy_quantile * count))).values[-1]
        return mask & (entropies >= smallest - _SAME)
