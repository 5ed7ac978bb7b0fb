"""The mean over sequences of the mean over tokens, which GRPO and others share."""

import torch
from torch import Tensor

from grpovi_lightning.losses.base import PolicyLoss
from grpovi_lightning.ops import masked_sum


class SequenceMeanLoss(PolicyLoss):
    """1 / B sum_b 1 / |y_b| sum_t: a token of a short completion weighs more than one of a long completion."""

    def total(self, token_loss: Tensor, mask: Tensor) -> Tensor:
        """Sum over sequences the mean over tokens; a sequence without tokens adds 0."""
        return (masked_sum(token_loss, mask, dim=1) / mask.sum(dim=1).clamp(min=1)).sum()

    def denominator(self, completion_mask: Tensor, rollout_mask: Tensor | None = None) -> Tensor:
        """Return the number of sequences, those without tokens included."""
        return torch.tensor(float(len(completion_mask)), device=completion_mask.device)
