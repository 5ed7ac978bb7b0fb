"""Rewards pulled apart by one factor: the control for what GRPOVI has beyond a scale."""

from torch import Tensor

from grpovi_lightning.adjustment.adjustments import Adjusted, Adjustment
from grpovi_lightning.adjustment.ranges import Bounds
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops.masked import centred
from grpovi_lightning.structures import Rollout


class Stretch(Adjustment):
    """Affine stretch: mean + c (reward - mean), with the mean of the group; the trivial way to raise variance (ours).

    The variance within each group is c^2 times what it was; mean, order and relative distances stay, bounds do not. It
    is a control for `VarianceIncrease`, which stays within the range and forgets the distances. Advantages that are
    divided by the spread of the rewards stay as they are, and such a run is refused. To unscaled ones it is a factor c,
    which Adam takes out again but for its epsilon and the KL penalty.

    c = 1 is GRPO, to the bit. Groups of equal rewards stay as they are.

    >>> import torch
    >>> from grpovi_lightning.structures import PromptBatch
    >>> rollout = Rollout.of_texts(PromptBatch(["a prompt"], torch.tensor([0]), {}), ["a completion"])
    >>> Stretch(2.0)(torch.tensor([[0.25, 0.75, 0.5]]), rollout).rewards.tolist()
    [[0.0, 1.0, 0.5]]
    """

    only_scales = True

    def __init__(self, factor: float) -> None:
        """Set c, a finite number above 0."""
        super().__init__()
        if not 0.0 < factor < float("inf"):
            raise UserError(f"Stretch: got a factor of {factor}, expected a finite number above 0")
        self.factor, self.adjusts = factor, factor != 1.0

    def bounds(self, rewards: Bounds) -> Bounds:
        if rewards is None or self.factor <= 1.0:
            return rewards
        beyond = (self.factor - 1.0) * (rewards[1] - rewards[0])
        return rewards[0] - beyond, rewards[1] + beyond

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        values = rewards.double()
        # Added to the rewards, not put in their place: with c = 1 nothing is rounded.
        return Adjusted((values + (self.factor - 1.0) * centred(values, ~values.isnan())).to(rewards.dtype))
