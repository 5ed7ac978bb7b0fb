"""Reward dithering by normal noise."""

import torch
from torch import Tensor

from grpovi_lightning.adjustment.dithering import Dithering
from grpovi_lightning.adjustment.ranges import Bounds


class GaussianDithering(Dithering):
    """Reward dithering (ReDit) by normal noise: reward + e, e ~ N(0, std^2) (arXiv 2506.18631, section 4).

    See `Dithering` for what it does to which advantage. The paper's values could not be read, so `std` has no default.
    """

    def __init__(self, std: float) -> None:
        """Set the standard deviation of the noise, in units of the reward; 0 is GRPO."""
        super().__init__(std)

    def bounds(self, rewards: Bounds) -> Bounds:
        return (-torch.inf, torch.inf) if self.adjusts else rewards

    def quantile(self, uniforms: Tensor) -> Tensor:
        return torch.special.ndtri(uniforms)
