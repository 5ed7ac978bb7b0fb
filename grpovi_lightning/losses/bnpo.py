"""BNPO: the mean over the tokens of the batch."""

from torch import Tensor

from grpovi_lightning.losses.clipped import ClippedLoss


class BNPOLoss(ClippedLoss):
    """The clipped surrogate, every token of an optimiser step with the same weight: TRL's `bnpo`.

    TRL takes the mean over each micro-batch, so its gradient depends on how the batch is split; here it is the
    mean over all tokens of the step.
    """

    def denominator(self, completion_mask: Tensor, rollout_mask: Tensor | None = None) -> Tensor:
        """The number of tokens in this step, whatever the rest of the rollout."""
        return super().denominator(completion_mask)
