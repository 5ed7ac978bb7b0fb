"""Adjustments: what the training loop calls between the rewards and the advantages."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grpovi_lightning.adjustment.ranges import Bounds, GroupRange, RewardRange, RunningRange
from grpovi_lightning.adjustment.ties import Ties, TiesName, ties_of
from grpovi_lightning.adjustment.variance_increase import increase_variance
from grpovi_lightning.adjustment.weights import CompletionWeights, SequenceWeights
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops.masked import masked_extremes
from grpovi_lightning.structures import Rollout


@dataclass(frozen=True)
class Increase:
    """What an adjustment did to a batch; for `VarianceIncrease`, the paper's model (3) and its solution.

    Attributes:
        rewards: [P, G] as the range returned them, raw or moved; NaN where not scored.
        adjusted: [P, G] the solution; NaN where not scored.
        log_weights: [P, G] float64 natural logs, unnormalised; -inf where not scored.
        lower: [P, 1] lower bound m, in units of the reward.
        upper: [P, 1] upper bound M.
    """

    rewards: Tensor
    adjusted: Tensor
    log_weights: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def scored(self) -> Tensor:
        """[P, G] bool, the completions that have a reward."""
        return ~self.rewards.isnan()


class Adjusted(NamedTuple):
    """Result of an adjustment.

    Attributes:
        rewards: [P, G] adjusted, to compute advantages from.
        increase: what was done, for diagnostics; None where the adjustment has no weights and range of its own.
    """

    rewards: Tensor
    increase: Increase | None = None


class Adjustment(nn.Module):
    """Rewards of each group -> adjusted rewards.

    It is an `nn.Module`, so that the state of a range is part of the checkpoint.
    """

    needs_reference: bool = False
    """Whether the rollout must carry the reference policy's log-probabilities."""
    changes_pairs: bool = True
    """Whether the standardised advantages of a group of two can differ from those of the raw rewards."""
    only_scales: bool = False
    """Whether it multiplies the distances of all rewards from the mean of their group by one number, and no more."""
    adjusts: bool = True
    """Whether adjusted rewards can differ from raw ones; False is GRPO. Recorded with the run, for the report."""

    @abstractmethod
    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        """Adjust the raw rewards [P, G] of a rollout, in a new tensor.

        NaN, the reward of a completion that could not be scored, stays NaN and moves no other reward.
        """

    def reward_changed(self) -> None:
        """Forget what was learned from earlier rewards: the reward is another one from here on."""

    def bounds(self, rewards: Bounds) -> Bounds:
        """Return what bounds adjusted rewards where raw ones lie in `rewards`; None: not known before training."""
        return None


class IdentityAdjustment(Adjustment):
    """GRPO: the rewards as they are."""

    adjusts = False

    def bounds(self, rewards: Bounds) -> Bounds:
        return rewards

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        return Adjusted(rewards)


class RangeOnly(Adjustment):
    """The rewards moved into a range, and nothing more: the control for a range that clips or bends them.

    `VarianceIncrease` with such a range changes GRPO twice: it moves the rewards and increases their variance. This
    adjustment does the first alone, so the difference between the two runs is the effect of the second.
    """

    def __init__(self, range: RewardRange) -> None:
        """Compose the control.

        Args:
            range: that of the `VarianceIncrease` to compare with.

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
        self.range.reward_changed()

    def bounds(self, rewards: Bounds) -> Bounds:
        return self.range.bounds(rewards)

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        bounded, _, _ = self.range(rewards)
        return Adjusted(bounded.to(rewards.dtype))


class VarianceIncrease(Adjustment):
    """GRPOVI: the largest weighted variance within order, mean and range (arXiv 2505.23247, Algorithm 3).

    Degenerate cases: rewards that already sit at the two ends of the range (0/1 rewards with range [0, 1]) stay as
    they are; with two completions and standardised advantages nothing changes.

    >>> from grpovi_lightning.adjustment import FixedRange, UniformWeights
    >>> from grpovi_lightning.structures import PromptBatch
    >>> ids, mask = torch.ones(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool)
    >>> rollout = Rollout(PromptBatch(["a prompt"], torch.tensor([0]), {}), 3, 0, ids[:1], mask[:1], ids, mask,
    ...                   torch.zeros(3, 1), ~mask[:, 0], ["one", "two", "three"])  # P = 1, G = 3, T = 1
    >>> adjustment = VarianceIncrease(UniformWeights(), FixedRange(lower=0.0, upper=1.0))
    >>> adjustment(torch.tensor([[0.25, 0.75, 0.5]]), rollout).rewards.tolist()  # the mean stays 0.5
    [[0.0, 1.0, 0.5]]
    """

    changes_pairs = False

    def __init__(
        self,
        weights: CompletionWeights | None = None,
        range: RewardRange | None = None,
        ties: Ties | TiesName = "merge",
    ) -> None:
        """Compose the adjustment.

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
        self.range.reward_changed()

    def bounds(self, rewards: Bounds) -> Bounds:
        return self.range.bounds(rewards)

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        increase = self.increase(rewards, rollout)
        return Adjusted(increase.adjusted, increase)

    def describe(self, adjusted: Tensor, rewards: Tensor, rollout: Rollout) -> Increase:
        """Describe what an adjustment without weights and range of its own made of rewards, by those of this one.

        A range that moves rewards is not one of them: each group's smallest and largest stand in its place.
        """
        here = self.increase(rewards, rollout)
        _, lower, upper = GroupRange()(rewards) if self.range.moves_rewards else (None, here.lower, here.upper)
        return Increase(rewards, adjusted, here.log_weights, lower, upper)

    def increase(self, rewards: Tensor, rollout: Rollout) -> Increase:
        """Pose and solve model (3) for raw rewards [P, G]; NaN where a completion could not be scored."""
        log_weights = self.weights(rollout)
        bounded, lower, upper = self.range(rewards)
        unscored = rewards.isnan()
        if not bool(unscored.any()):
            adjusted = increase_variance(bounded, log_weights, lower=lower, upper=upper, ties=self.ties)
            return Increase(bounded, adjusted.to(rewards.dtype), log_weights, lower, upper)
        # With weight 0 and their group's smallest reward, unscored completions change no other value.
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
