"""The contract of an advantage, and everything that does not depend on which one it is."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from grpovi_lightning.ops.masked import differs, masked_moments


class Advantage(ABC):
    """Adjusted rewards -> advantages.

    A new advantage is a file with a subclass that says what the `advantages` of scored completions are. Completions
    without a reward (NaN) get an advantage of exactly 0, whatever the subclass puts there.
    """

    @property
    def standardised(self) -> bool:
        """Whether each group's advantages have unit spread, whatever the spread of its rewards."""
        return False

    @abstractmethod
    def advantages(self, rewards: Tensor, scored: Tensor) -> Tensor:
        """Compares the completions of each group; every rank calls it at the same point.

        Args:
            rewards: [P, G] float64, G >= 2; NaN where a completion could not be scored.
            scored: [P, G] bool, where the rewards are not NaN.

        Returns:
            [P, G]; what stands where `scored` is false is never read.
        """

    def __call__(self, rewards: Tensor) -> Tensor:
        """Computes the advantages in float64, and returns them in the rewards' dtype.

        Args:
            rewards: [P, G] adjusted, G >= 2; NaN where a completion could not be scored.

        Returns:
            [P, G], 0 where a completion could not be scored.

        Raises:
            ValueError: another shape.
        """
        if rewards.ndim != 2 or rewards.shape[1] < 2:
            raise ValueError(f"rewards: got shape {list(rewards.shape)}, expected [P, G] with G of at least 2")
        values = rewards.double()  # rewards far from 0 would lose their differences in a float32 mean
        scored = ~values.isnan()
        return torch.where(scored, self.advantages(values, scored), 0.0).to(rewards.dtype)


def centred(rewards: Tensor, scored: Tensor) -> Tensor:
    """Rewards minus the mean of the scored members of their group, [P, G].

    A group whose scored rewards are all equal, or that has fewer than two of them, is exactly 0: rounding of the
    mean must not turn it into +-1 through a tiny standard deviation.
    """
    mean, _ = masked_moments(rewards, scored)
    return torch.where(differs(rewards, scored), rewards - mean, 0.0)
