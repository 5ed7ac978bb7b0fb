"""GRPO: the mean over sequences of the mean over tokens."""

import torch
from torch import Tensor

from grpovi_lightning.losses.clipped import ClippedLoss
from grpovi_lightning.ops import masked_sum


class GRPOLoss(ClippedLoss):
    """Clipped surrogate with a KL penalty, as in DeepSeekMath (arXiv 2402.03300, equation 3).

        1 / B sum_b 1 / |y_b| sum_t [ -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) + beta k3 ]

    A token of a short completion weighs more than one of a long completion.

    >>> logprobs, mask = torch.zeros(2, 2), torch.tensor([[True, True], [True, False]])
    >>> loss = GRPOLoss()(logprobs, logprobs, torch.tensor([4.0, -2.0]), mask).loss
    >>> loss.item()  # the mean of (-4 - 4) / 2 and 2 / 1
    -1.0
    """

    def total(self, token_loss: Tensor, mask: Tensor) -> Tensor:
        """Sum over sequences the mean over tokens; a sequence without tokens adds 0."""
        return (masked_sum(token_loss, mask, dim=1) / mask.sum(dim=1).clamp(min=1)).sum()

    def denominator(self, completion_mask: Tensor, rollout_mask: Tensor | None = None) -> Tensor:
        """Return the number of sequences, those without tokens included."""
        return torch.tensor(float(len(completion_mask)), device=completion_mask.device)
