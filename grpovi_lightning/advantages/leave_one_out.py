"""Advantages relative to the mean of the other completions: RLOO's."""

from torch import Tensor

from grpovi_lightning.advantages.base import Advantage
from grpovi_lightning.ops.masked import centred


class LeaveOneOutAdvantage(Advantage):
    """A_i = r_i - mean of the other rewards of its group: REINFORCE leave-one-out (RLOO, arXiv 2402.14740).

    The baseline of a completion does not depend on the completion itself, so the policy gradient stays unbiased
    (Kool, van Hoof, Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!"). With n scored rewards,
    A_i = n / (n - 1) (r_i - mean of all): that of `GroupAdvantage` with `scale_rewards: none`, times a factor that is
    the same for every full group.

    >>> import torch
    >>> LeaveOneOutAdvantage()(torch.tensor([[1.0, 0.0, 0.5]])).tolist()  # 1 - (0 + 0.5) / 2 = 0.75
    [[0.75, -0.75, 0.0]]

    Degenerate cases: groups of equal rewards, and those with fewer than two scored completions, are exactly 0.

    RLOO as published also puts the KL penalty into the reward and takes one update a rollout without clipping; here
    the penalty and the clipping belong to the loss.
    """

    def advantages(self, rewards: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        # n / (n - 1) undoes that a completion is part of its own mean.
        count = scored.sum(dim=1, keepdim=True).to(rewards.dtype)
        return centred(rewards, scored) * (count / (count - 1).clamp(min=1))
