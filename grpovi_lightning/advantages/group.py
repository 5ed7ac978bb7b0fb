"""Advantages relative to the mean of the group: GRPO's."""

from typing import Literal, get_args

from torch import Tensor

from grpovi_lightning.advantages.base import Advantage
from grpovi_lightning.distributed import gather_rows
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops.masked import centred, masked_moments

ScaleRewards = Literal["group", "batch", "none"]


class GroupAdvantage(Advantage):
    """Group-relative advantages: (reward - mean of the group) / (std + eps), as in GRPO (arXiv 2402.03300) and TRL.

    `scale_rewards` chooses the standard deviation: of the `group` (GRPO), of the whole `batch` over all
    ranks, or `none` (no division, as Dr. GRPO, arXiv 2503.20783, proposes). Standard deviations use
    Bessel's correction and include groups of equal rewards, whose advantages are exactly 0.

    Mean and standard deviations are those of the completions that have a reward. A group with fewer than two of them
    has advantages of exactly 0.

    >>> import torch
    >>> rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # mean 0.25, standard deviation 0.5
    >>> GroupAdvantage(scale_rewards="none")(rewards).tolist()
    [[0.75, -0.25, -0.25, -0.25]]
    >>> [round(advantage, 3) for advantage in GroupAdvantage()(rewards)[0].tolist()]
    [1.5, -0.5, -0.5, -0.5]
    """

    def __init__(self, scale_rewards: ScaleRewards = "group", eps: float = 1e-4) -> None:
        """Choose the scaling.

        Args:
            scale_rewards: "group", "batch" or "none".
            eps: added to the standard deviation, because that of equal rewards is 0.
        """
        if not 0.0 < eps < float("inf"):
            raise UserError(f"advantage eps: got {eps}, expected a finite number above 0")
        if scale_rewards not in get_args(ScaleRewards):
            raise UserError(
                f"scale_rewards: got {scale_rewards!r}, expected one of {', '.join(get_args(ScaleRewards))}"
            )
        self.scale_rewards: ScaleRewards = scale_rewards
        self.eps = eps

    @property
    def standardised(self) -> bool:
        return self.scale_rewards == "group"

    @property
    def ignores_scale(self) -> bool:
        return self.standardised

    def advantages(self, rewards: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        match self.scale_rewards:
            case "group":
                scale = masked_moments(rewards, scored)[1] + self.eps
            case "batch":
                scale = _global_std(rewards) + self.eps
            case "none":
                scale = 1.0
        return centred(rewards, scored) / scale


def _global_std(rewards: Tensor) -> Tensor:
    """Return the standard deviation (Bessel) over the scored rewards of all ranks; 0 of fewer than two."""
    rewards = gather_rows(rewards)
    scored = rewards[~rewards.isnan()]
    return scored.std() if scored.numel() > 1 else rewards.new_zeros(())
