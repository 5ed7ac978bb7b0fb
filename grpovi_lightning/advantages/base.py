"""What all advantages share: the contract, the checks, and what becomes of completions without a reward."""

from abc import ABC, abstractmethod
from math import inf

import torch
from torch import Tensor

from grpovi_lightning.errors import TrainingError

_ROUNDING = 1e-6
"""Share of the upper bound of a domain by which a reward may miss it: a sum of several parts is rounded."""


class Advantage(ABC):
    """Adjusted rewards -> advantages.

    A new advantage is a file with a subclass that defines the `advantages` of scored completions. Completions without
    a reward (NaN) get an advantage of exactly 0, whatever the subclass puts there.
    """

    domain: tuple[float, float] = (-inf, inf)
    """Smallest and largest reward that the advantage is defined for."""
    needs_lengths: bool = False
    """Whether the lengths of the completions must be given."""

    @property
    def ignores_scale(self) -> bool:
        """Whether nothing changes where one factor multiplies the distances of all rewards from their group's mean."""
        return False

    @property
    def standardised(self) -> bool:
        """Whether each group's advantages have unit spread, whatever the spread of its rewards."""
        return False

    @abstractmethod
    def advantages(self, rewards: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        """Compare the completions of each group.

        Every rank makes this call at the same point, so it may use collectives.

        Args:
            rewards: [P, G] float64, G >= 2; NaN where a completion could not be scored.
            scored: [P, G] bool, where the rewards are not NaN.
            lengths: [P, G] float64, tokens of the completions, at least 1; NaN where `needs_lengths` is false and
                none were given.

        Returns:
            [P, G]; values where `scored` is false are never read.
        """

    def __call__(self, rewards: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the advantages in float64 and return them in the rewards' dtype.

        Args:
            rewards: [P, G] adjusted, G >= 2; NaN where a completion could not be scored.
            lengths: [P, G] tokens of the completions, the end token included; None where they are not read.

        Returns:
            [P, G]; 0 where a completion could not be scored.

        Raises:
            ValueError: rewards or lengths of another shape.
            TrainingError: a reward outside the domain.
        """
        if rewards.ndim != 2 or rewards.shape[1] < 2:
            raise ValueError(f"rewards: got shape {list(rewards.shape)}, expected [P, G] with G of at least 2")
        if (self.needs_lengths and lengths is None) or (lengths is not None and lengths.shape != rewards.shape):
            got = None if lengths is None else f"shape {list(lengths.shape)}"
            raise ValueError(f"lengths: got {got}, expected that of the rewards, {list(rewards.shape)}")
        outside = self.outside(rewards)
        if bool(outside.any()):
            prompt, member = outside.nonzero()[0].tolist()
            raise TrainingError(
                f"{type(self).__name__}: got reward {rewards[prompt, member].item():.6g} for completion {member} of "
                f"prompt {prompt}, expected {shown_range(self.domain)}; take another reward, or an adjustment such as "
                "RangeOnly with a SigmoidRange"
            )
        values = rewards.double()  # in float32, rewards far from 0 would lose their differences in the mean
        scored = ~values.isnan()
        tokens = torch.full_like(values, torch.nan) if lengths is None else lengths.double()
        return torch.where(scored, self.advantages(values, scored, tokens), 0.0).to(rewards.dtype)

    def outside(self, rewards: Tensor) -> Tensor:
        """Return [P, G] bool: the rewards that are not in the domain. NaN, which was not scored, is not among them."""
        lowest, highest = self.domain
        return (rewards < lowest) | (rewards > highest + _ROUNDING * abs(highest))


def shown_range(bounds: tuple[float, float]) -> str:
    """Return in words what lies within bounds.

    >>> shown_range((0.0, 1.0)), shown_range((0.0, inf)), shown_range((-inf, inf))
    ('rewards from 0 to 1', 'rewards of at least 0', 'any rewards')
    """
    lowest, highest = bounds
    if highest == inf:
        return "any rewards" if lowest == -inf else f"rewards of at least {lowest:g}"
    return f"rewards from {lowest:g} to {highest:g}"
