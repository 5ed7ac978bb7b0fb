"""Adjusted rewards -> advantages."""

from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from grpovi_lightning.errors import UserError

ScaleRewards = Literal["group", "batch", "none"]


class GroupAdvantage:
    """Group-relative advantages: (reward - mean of the group) / (std + eps), as in GRPO (arXiv 2402.03300) and TRL.

    `scale_rewards` chooses the standard deviation: of the `group` (GRPO), of the whole `batch` over all
    ranks, or `none` (no division, as Dr. GRPO, arXiv 2503.20783, proposes). Standard deviations use
    Bessel's correction and include groups of equal rewards, whose advantages are exactly 0.
    """

    def __init__(self, scale_rewards: ScaleRewards = "group", eps: float = 1e-4) -> None:
        """Takes the scaling and the number added to the standard deviation, which keeps equal rewards from 0 / 0."""
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
        """Whether each group's advantages have unit spread, whatever the spread of its rewards."""
        return self.scale_rewards == "group"

    def __call__(self, rewards: Tensor) -> Tensor:
        """Adjusted rewards [P, G], G >= 2 -> advantages [P, G]."""
        if rewards.ndim != 2 or rewards.shape[1] < 2:
            raise ValueError(f"rewards: got shape {list(rewards.shape)}, expected [P, G] with G of at least 2")
        values = rewards.double()  # rewards far from 0 would lose their differences in a float32 mean
        # Rounding of the mean must not turn a group of equal rewards into +-1 through a tiny std.
        equal = (values == values[:, :1]).all(dim=1, keepdim=True)
        centred = torch.where(equal, 0.0, values - values.mean(dim=1, keepdim=True))
        match self.scale_rewards:
            case "group":
                scale = values.std(dim=1, keepdim=True) + self.eps
            case "batch":
                scale = _global_std(values) + self.eps
            case "none":
                scale = 1.0
        return (centred / scale).to(rewards.dtype)


def _global_std(rewards: Tensor) -> Tensor:
    """Standard deviation with Bessel's correction over the rewards of all ranks."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        gathered = [torch.empty_like(rewards) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rewards.contiguous())
        rewards = torch.cat(gathered)
    return rewards.std()
