"""Advantages that count less where the group succeeds often: F-GRPO's."""

from torch import Tensor

from grpovi_lightning.advantages.base import Advantage
from grpovi_lightning.advantages.group import GroupAdvantage
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops.masked import masked_moments


class FocalAdvantage(Advantage):
    """A_i (1 - p)^gamma, with p the mean reward of the group: the focal weight of F-GRPO (arXiv 2602.06717).

    A are the advantages of any other kind. The paper has 0/1 rewards, where p is the success rate; here rewards may lie
    anywhere in [0, 1], and others are refused. p is that of the adjusted rewards of the completions that have one.

    gamma = 0 is the other advantage, to the bit. A group that always succeeds (p = 1) would weigh nothing; its rewards
    are equal anyway.

    >>> import torch
    >>> other = GroupAdvantage(scale_rewards="none")
    >>> FocalAdvantage(2.0, other)(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])).tolist()
    [[0.421875, -0.140625, -0.140625, -0.140625], [0.015625, 0.015625, 0.015625, -0.046875]]
    """

    def __init__(self, gamma: float, advantage: Advantage | None = None) -> None:
        """Set the weight.

        Args:
            gamma: the exponent, at least 0.
            advantage: what is weighted; default `GroupAdvantage`.
        """
        if not 0.0 <= gamma < float("inf"):
            raise UserError(f"FocalAdvantage: got a gamma of {gamma}, expected a finite number of at least 0")
        self.gamma, self.advantage = gamma, advantage or GroupAdvantage()
        self.domain = max(0.0, self.advantage.domain[0]), min(1.0, self.advantage.domain[1])
        self.needs_lengths = self.advantage.needs_lengths

    @property
    def ignores_scale(self) -> bool:
        return self.advantage.ignores_scale

    def advantages(self, rewards: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        p, _ = masked_moments(rewards, scored)
        # A rounded reward may be a little above 1.
        return self.advantage.advantages(rewards, scored, lengths) * (1.0 - p).clamp(min=0.0) ** self.gamma
