"""BNPO: the mean over the tokens of the batch."""

from torch import Tensor

from grpovi_lightning.losses.clipped import ClippedLoss


class BNPOLoss(ClippedLoss):
    """The clipped surrogate, every token of an optimiser step with the same weight: TRL's `bnpo`.

    TRL takes the mean over each micro-batch, so its gradient depends on how the batch is split; here it is the
    mean over all tokens of the step.

    >>> import torch
    >>> logprobs, mask = torch.zeros(2, 2), torch.tensor([[True, True], [True, False]])
    >>> BNPOLoss()(logprobs, logprobs, torch.tensor([4.0, -2.0]), mask).loss.item()  # (-4 - 4 + 2) / 3 tokens
    -2.0
    """

    def denominator(self, completion_mask: Tensor, rollout_mask: Tensor | None = None) -> Tensor:
        """Return the number of tokens in this step, whatever the rest of the rollout holds."""
        return super().denominator(completion_mask)
