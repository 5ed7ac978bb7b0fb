"""Reward dithering by uniform noise."""

from torch import Tensor

from grpovi_lightning.adjustment.dithering import Dithering
from grpovi_lightning.adjustment.ranges import Bounds


class UniformDithering(Dithering):
    """Reward dithering (ReDit) by uniform noise: reward + e, e ~ U(-a, a) (arXiv 2506.18631, section 4).

    See `Dithering`. With a = sqrt(3) std the noise has the variance of `GaussianDithering`. Rewards that differ by more
    than 2 a keep their order.
    """

    def __init__(self, half_width: float) -> None:
        """Set a, the largest noise on a reward, in units of the reward; 0 is GRPO."""
        super().__init__(half_width)

    def bounds(self, rewards: Bounds) -> Bounds:
        return None if rewards is None else (rewards[0] - self.width, rewards[1] + self.width)

    def quantile(self, uniforms: Tensor) -> Tensor:
        return 2.0 * uniforms - 1.0
