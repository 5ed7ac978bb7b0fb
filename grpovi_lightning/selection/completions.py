"""What all selections of completions share: the contract, and the order of a group."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.selection.scored import ScoredRollout
from grpovi_lightning.structures import Rollout


class CompletionSelection(ABC):
    """Of the G completions of each prompt, the m that the policy learns from.

    It acts first: raw rewards decide, then the kept ones alone are adjusted and compared, so that mean and standard
    deviation of a group are those of its m completions. Updates run over the kept completions only, and cost m / G of
    what they would, but for the prompts. Sampling, reward and reference see all G, and logged rewards and lengths are
    those of all. Each group is selected from by itself, so a rank needs to know of no other. Completions without a
    reward are kept only where fewer than m have one.

    A new selection is a file with a subclass that defines which completions it will `choose`. With m = G each is GRPO.
    """

    def __init__(self, keep: int) -> None:
        """Set m, at least 2 and at most the group size."""
        if keep < 2:
            raise UserError(
                f"{type(self).__name__} keep: got {keep}, expected at least 2; the advantage of a completion is its "
                "reward relative to the others that are kept"
            )
        self.keep = keep

    def size(self, group_size: int) -> int:
        """Return m, the completions that are kept of `group_size`.

        Raises:
            UserError: they are more than there are.
        """
        if self.keep > group_size:
            raise UserError(
                f"{type(self).__name__} keep: got {self.keep}, expected at most group_size {group_size}; "
                "keep fewer or sample more"
            )
        return self.keep

    @abstractmethod
    def choose(self, rewards: Tensor, rollout: Rollout, seed: int) -> Tensor:
        """Return the places [P, m] of the kept completions in their groups, in any order.

        Args:
            rewards: [P, G] float64, raw; NaN where a completion could not be scored.
            rollout: the completions.
            seed: the run's; with the rollout's step and prompts it makes every choice that is left to chance.
        """

    def __call__(self, scored: ScoredRollout, seed: int) -> ScoredRollout:
        """Keep completions of each group, in the order in which they were sampled.

        Raises:
            TrainingError: all groups are left out already.
        """
        scored = scored.learnable()
        return scored.keep(self.choose(scored.rewards.double(), scored.rollout, seed).sort(dim=1).values)


class EveryCompletion(CompletionSelection):
    """GRPO: the policy learns from all completions."""

    def __init__(self) -> None:
        """Take no setting."""

    def size(self, group_size: int) -> int:
        return group_size

    def choose(self, rewards: Tensor, rollout: Rollout, seed: int) -> Tensor:
        return torch.arange(rewards.shape[1], device=rewards.device).expand(rewards.shape)

    def __call__(self, scored: ScoredRollout, seed: int) -> ScoredRollout:
        return scored.learnable()


def largest_first(values: Tensor) -> Tensor:
    """Return the places of each group's values in descending order, equal ones as they came, NaN last; [P, G].

    >>> largest_first(torch.tensor([[2.0, torch.nan, 5.0, 2.0]])).tolist()
    [[2, 0, 3, 1]]
    """
    return values.masked_fill(values.isnan(), -torch.inf).argsort(dim=1, descending=True, stable=True)
