"""What the training loop calls between the rewards and the advantages."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grpovi_lightning.adjustment.ranges import RewardRange, RunningRange
from grpovi_lightning.adjustment.ties import Ties, TiesName, ties_of
from grpovi_lightning.adjustment.variance_increase import increase_variance
from grpovi_lightning.adjustment.weights import CompletionWeights, SequenceWeights
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops.masked import masked_extremes
from grpovi_lightning.structures import Rollout


@dataclass(frozen=True)
class Increase:
    """One batch of the paper's model (3) and its solution.

    Attributes:
        rewards: [P, G] as the range let them through: raw, or moved into it; NaN where a completion was not scored.
        adjusted: [P, G], the solution; NaN there, too.
        log_weights: [P, G] float64, unnormalised; -inf for completions that were not scored.
        lower: [P, 1].
        upper: [P, 1].
    """

    rewards: Tensor
    adjusted: Tensor
    log_weights: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def scored(self) -> Tensor:
        """[P, G] bool, the completions that have a reward: the members of the problem."""
        return ~self.rewards.isnan()


class Adjusted(NamedTuple):
    """Rewards to train on, and what variance increase did on the way.

    Attributes:
        rewards: [P, G] adjusted.
        increase: the batch's variance increase, where the adjustment made one.
    """

    rewards: Tensor
    increase: Increase | None = None


class Adjustment(nn.Module):
    """Rewards of each group -> adjusted rewards. An `nn.Module`, so that its state is checkpointed."""

    needs_reference: bool = False
    """Whether the rollout must carry the reference policy's log-probabilities."""
    changes_pairs: bool = True
    """Whether the standardised advantages of a group of two can differ from those of the raw rewards."""
    adjusts: bool = True
    """Whether adjusted rewards can differ from the raw ones at all; recorded with the run, for the report."""

    @abstractmethod
    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Adjusts raw rewards [P, G]; the argument is never written to.

        A reward of NaN is that of a completion that could not be scored. It stays NaN and moves no other.
        """

    def reward_changed(self) -> None:
        """The reward is another one from here on; a range that was taken from rewards starts anew."""


class IdentityAdjustment(Adjustment):
    """GRPO: the rewards as they are."""

    adjusts = False

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Returns the rewards unchanged."""
        return Adjusted(rewards)


class RangeOnly(Adjustment):
    """The rewards moved into a range, and nothing more: the control for a range that clips or bends them.

    A `VarianceIncrease` with such a range makes two changes to GRPO; beside this one it differs by the increase.
    """

    def __init__(self, range: RewardRange) -> None:
        """Takes the range of the `VarianceIncrease` to compare with.

        Raises:
            UserError: the range leaves rewards as they are, so that this would be `IdentityAdjustment`.
        """
        super().__init__()
        if not range.moves_rewards:
            raise UserError(
                f"RangeOnly cannot take effect: got {type(range).__name__}, which moves no reward; use "
                "IdentityAdjustment, or a range that bends or clips"
            )
        self.range = range

    def reward_changed(self) -> None:
        """See `Adjustment`."""
        self.range.reward_changed()

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Returns the rewards in the range."""
        bounded, _, _ = self.range(rewards)
        return Adjusted(bounded.to(rewards.dtype))


class VarianceIncrease(Adjustment):
    """GRPOVI: the largest weighted variance within order, mean and range (arXiv 2505.23247, Algorithm 3).

    Degenerate cases: rewards that already sit at the two ends of the range (0/1 rewards with range
    [0, 1]) are a fixed point; with two completions and standardised advantages nothing changes.

    Choices that the paper leaves open or that depart from it: see `weights`, `range` and `ties`.
    """

    changes_pairs = False

    def __init__(
        self,
        weights: CompletionWeights | None = None,
        range: RewardRange | None = None,
        ties: Ties | TiesName = "merge",
    ) -> None:
        """Composes the adjustment.

        Args:
            weights: the weights p_i; default `SequenceWeights`, the paper's.
            range: the range [m, M]; default `RunningRange`, because a learned reward has no known bounds.
            ties: `MergeTies` or "merge" keeps equal rewards equal; `SplitTies` or "split" is the paper's model.
        """
        super().__init__()
        self.weights = weights or SequenceWeights()
        self.range = range or RunningRange()
        self.ties = ties_of(ties)
        self.needs_reference = self.weights.needs_reference

    def reward_changed(self) -> None:
        """See `Adjustment`."""
        self.range.reward_changed()

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Adjusts [P, G] rewards."""
        increase = self.increase(rewards, rollout)
        return Adjusted(increase.adjusted, increase)

    def increase(self, rewards: Tensor, rollout: Rollout) -> Increase:
        """Poses and solves model (3) for raw rewards [P, G], of the completions that have one.

        The others stand in it with weight 0 beside their group's smallest reward, where they change nothing.
        """
        log_weights = self.weights(rollout)
        bounded, lower, upper = self.range(rewards)
        unscored = rewards.isnan()
        if not bool(unscored.any()):
            adjusted = increase_variance(bounded, log_weights, lower=lower, upper=upper, ties=self.ties)
            return Increase(bounded, adjusted.to(rewards.dtype), log_weights, lower, upper)
        log_weights = log_weights.masked_fill(unscored, -torch.inf)
        some = ~unscored.all(dim=1, keepdim=True)
        smallest = torch.where(some, masked_extremes(bounded, ~unscored)[0], lower)
        adjusted = increase_variance(
            torch.where(unscored, smallest, bounded),
            torch.where(some, log_weights, 0.0),  # a group without any reward is flat, whatever its weights
            lower=lower,
            upper=upper,
            ties=self.ties,
        )
        adjusted = adjusted.masked_fill(unscored, torch.nan).to(rewards.dtype)
        return Increase(bounded, adjusted, log_weights, lower, upper)
