"""Dr. GRPO: the sum over tokens divided by a constant."""

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.clipped import ClippedLoss
from grpovi_lightning.losses.kl import KLEstimator


class DrGRPOLoss(ClippedLoss):
    """The clipped surrogate without length bias: "GRPO done right" (arXiv 2503.20783).

    Neither the length of a completion nor the number of tokens in the batch changes the weight of a token. The paper
    also leaves the advantages unscaled: combine with `GroupAdvantage(scale_rewards="none")`.

    >>> logprobs, mask = torch.zeros(2, 2), torch.tensor([[True, True], [True, False]])
    >>> loss = DrGRPOLoss(max_completion_length=4)(logprobs, logprobs, torch.tensor([4.0, -2.0]), mask).loss
    >>> loss.item()  # (-4 - 4 + 2) / (2 sequences * 4 tokens)
    -0.75
    """

    def __init__(
        self,
        max_completion_length: int,
        beta: float = 0.0,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        delta: float | None = None,
        kl: KLEstimator | None = None,
    ) -> None:
        """Set the constant, in tokens, and the hyper-parameters of `ClippedLoss`.

        The constant is the `max_completion_length` of the sampling; another one only scales the loss.
        """
        super().__init__(beta, epsilon, epsilon_high, delta, kl)
        if not 1 <= max_completion_length < float("inf"):
            raise UserError(f"max_completion_length: got {max_completion_length}, expected at least 1 token")
        self.max_completion_length = max_completion_length

    def denominator(self, completion_mask: Tensor, rollout_mask: Tensor | None = None) -> Tensor:
        """Return the largest number of tokens that these sequences could have."""
        return torch.tensor(float(len(completion_mask) * self.max_completion_length), device=completion_mask.device)
