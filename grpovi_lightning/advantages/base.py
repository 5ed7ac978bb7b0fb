"""What all advantages share: the contract, the checks, and what becomes of completions without a reward."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from grpovi_lightning.ops.masked import differs, masked_moments


class Advantage(ABC):
    """Adjusted rewards -> advantages.

    A new advantage is a file with a subclass that defines the `advantages` of scored completions. Completions without
    a reward (NaN) get an advantage of exactly 0, whatever the subclass puts there.
    """

    @property
    def standardised(self) -> bool:
        """Whether each group's advantages have unit spread, whatever the spread of its rewards."""
        return False

    @abstractmethod
    def advantages(self, rewards: Tensor, scored: Tensor) -> Tensor:
        """Compare the completions of each group.

        Every rank makes this call at the same point, so it may use collectives.

        Args:
            rewards: [P, G] float64, G >= 2; NaN where a completion could not be scored.
            scored: [P, G] bool, where the rewards are not NaN.

        Returns:
            [P, G]; values where `scored` is false are never read.
        """

    def __call__(self, rewards: Tensor) -> Tensor:
        """Compute the advantages in float64 and return them in the rewards' dtype.

        Args:
            rewards: [P, G] adjusted, G >= 2; NaN where a completion could not be scored.

        Returns:
            [P, G]; 0 where a completion could not be scored.

        Raises:
            ValueError: rewards of another shape.
        """
        if rewards.ndim != 2 or rewards.shape[1] < 2:
            raise ValueError(f"rewards: got shape {list(rewards.shape)}, expected [P, G] with G of at least 2")
        values = rewards.double()  # in float32, rewards far from 0 would lose their differences in the mean
        scored = ~values.isnan()
        return torch.where(scored, self.advantages(values, scored), 0.0).to(rewards.dtype)


def centred(rewards: Tensor, scored: Tensor) -> Tensor:
    """Return rewards minus the mean of the scored members of their group, [P, G].

    A group whose scored rewards are all equal, or that has fewer than two of them, is exactly 0.

    Args:
        rewards: [P, G] float.
        scored: [P, G] bool.
    """
    mean, _ = masked_moments(rewards, scored)
    # Equal rewards less their rounded mean may be 1e-17, which a standard deviation as small would turn into 1.
    return torch.where(differs(rewards, scored), rewards - mean, 0.0)
