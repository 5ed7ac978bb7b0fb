"""Noise on the rewards: reward dithering."""

from abc import abstractmethod

from torch import Tensor

from grpovi_lightning.adjustment.adjustments import Adjusted, Adjustment
from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import dither_uniforms
from grpovi_lightning.structures import Rollout


class Dithering(Adjustment):
    """Adds noise of mean 0 to every reward: reward + width * e, with e a pure function of (seed, step, prompt, place).

    The expectation of an advantage that is linear in the rewards (unscaled, leave-one-out, length-weighted) stays what
    it was: there the noise adds to the gradient's and no more. Standardised advantages change also in expectation.
    Completions with equal rewards get different ones, so a group without variance is trained on noise alone. That holds
    for pairs, too, whose standardised advantages are +-0.7 whatever the distance of the rewards: different rewards
    keep them unless the noise turns their order, equal ones get them at random. A width of 0 is GRPO, to the bit.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        if not 0.0 <= width < float("inf"):
            raise UserError(f"{type(self).__name__}: got a width of {width}, expected a finite number of at least 0")
        self.width, self.adjusts = width, width > 0.0

    @abstractmethod
    def quantile(self, uniforms: Tensor) -> Tensor:
        """Return the noise of width 1 for uniform numbers in (0, 1)."""

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        assert rollout.seed is not None, "no policy sampled this rollout"
        uniforms = dither_uniforms(rollout.seed, rollout.step, rollout.prompts.indices, rollout.group_size)
        noise = self.width * self.quantile(uniforms.clamp(min=2.0**-54))  # the normal quantile of 0 is -inf
        return Adjusted((rewards.double() + noise.to(rewards.device)).to(rewards.dtype))
