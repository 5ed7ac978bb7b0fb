"""Advantages relative to the mean of the group, and in units of it: MaxRL's."""

from math import inf

import torch
from torch import Tensor

from grpovi_lightning.advantages.base import Advantage
from grpovi_lightning.ops.masked import centred, masked_moments


class MaxRLAdvantage(Advantage):
    """A_i = (r_i - mean of the group) / mean of the group: maximum likelihood RL (arXiv 2602.02710).

    With 0/1 rewards the mean is the success rate p, and dividing by it turns the gradient of p into that of log p, up
    to the order that the size of the group allows: prompts that are rarely solved weigh more. The paper has 0/1 rewards
    only; here any reward of at least 0 will do, and a negative one is refused.

    It is `GroupAdvantage` with `scale_rewards: none`, divided by the mean. A mean of 0 gives 0: no completion has a
    reward then. Groups of equal rewards, and those with fewer than two scored completions, are exactly 0. Unlike TRL,
    nothing is added to the mean.

    >>> MaxRLAdvantage()(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])).tolist()
    [[3.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]
    """

    domain = (0.0, inf)

    def advantages(self, rewards: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        mean, _ = masked_moments(rewards, scored)
        return torch.where(mean > 0.0, centred(rewards, scored) / mean, 0.0)
