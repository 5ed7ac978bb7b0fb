"""Advantages relative to a mean in which long completions count more: OPO's."""

from torch import Tensor

from grpovi_lightning.advantages.base import Advantage
from grpovi_lightning.ops.masked import centred


class OPOAdvantage(Advantage):
    """A_i = r_i - sum_j l_j r_j / sum_j l_j, with l the length in tokens: OPO (arXiv 2505.23585).

    The baseline with the least variance weighs each reward by the squared norm of its completion's gradient. OPO takes
    that norm for proportional to the length. There is no division by a standard deviation.

    Where all completions of a group are equally long it is `GroupAdvantage` with `scale_rewards: none`. The mean and
    the lengths are those of the completions that have a reward. Groups of equal rewards, and those with fewer than two
    scored completions, are exactly 0.

    OPO as published also takes one update a rollout and no KL penalty; here both belong to the updates and the loss.

    >>> import torch
    >>> OPOAdvantage()(torch.tensor([[1.0, 0.0]]), lengths=torch.tensor([[3, 1]])).tolist()  # 3 * 1 / 4 = 0.75
    [[0.25, -0.75]]
    """

    needs_lengths = True

    def advantages(self, rewards: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        return centred(rewards, scored, lengths)
