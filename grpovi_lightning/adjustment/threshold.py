"""Rewards at one end of the range or the other: the control for the mean that GRPOVI keeps."""

import torch
from torch import Tensor

from grpovi_lightning.adjustment.adjustments import Adjusted, Adjustment, Increase
from grpovi_lightning.adjustment.ranges import Bounds, RewardRange, RunningRange
from grpovi_lightning.adjustment.weights import CompletionWeights, SequenceWeights
from grpovi_lightning.ops.masked import differs, masked_extremes, masked_sum
from grpovi_lightning.structures import Rollout


class Threshold(Adjustment):
    """Rewards above the weighted mean of their group become M, those below it m: the mean is not kept (ours).

    A control for `VarianceIncrease`, with the same weights and range: it, too, forgets the distances between rewards
    and ends at the bounds. A reward between the extremes that equals the mean, up to rounding, becomes (m + M) / 2.

    Rewards that sit at both ends already (0/1 rewards with range [0, 1]) and groups of equal rewards stay as they are:
    there it is GRPO. With two completions and standardised advantages nothing changes.

    >>> from grpovi_lightning.adjustment import FixedRange, UniformWeights
    >>> from grpovi_lightning.structures import PromptBatch
    >>> ids, mask = torch.ones(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool)
    >>> rollout = Rollout(PromptBatch(["a prompt"], torch.tensor([0]), {}), 3, 0, ids[:1], mask[:1], ids, mask,
    ...                   torch.zeros(3, 1), ~mask[:, 0], ["one", "two", "three"])  # P = 1, G = 3, T = 1
    >>> Threshold(UniformWeights(), FixedRange(0.0, 1.0))(torch.tensor([[0.25, 0.5, 0.125]]), rollout).rewards.tolist()
    [[0.0, 1.0, 0.0]]
    """

    changes_pairs = False

    def __init__(self, weights: CompletionWeights | None = None, range: RewardRange | None = None) -> None:
        """Compose it of weights and a range: those of the `VarianceIncrease` to compare with, whose defaults it has."""
        super().__init__()
        self.weights, self.range = weights or SequenceWeights(), range or RunningRange()
        self.needs_reference = self.weights.needs_reference

    def reward_changed(self) -> None:
        self.range.reward_changed()

    def bounds(self, rewards: Bounds) -> Bounds:
        return self.range.bounds(rewards)

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        bounded, lower, upper = self.range(rewards)
        scored = ~rewards.isnan()
        log_weights = self.weights(rollout).masked_fill(~scored, -torch.inf)
        lowest, highest = masked_extremes(bounded.double(), scored)
        values = bounded.double() - lowest  # small numbers, so that a common offset does not round the mean
        mean = masked_sum(log_weights.softmax(dim=1) * values, scored, dim=1)[:, None]
        span = highest - lowest
        side = torch.where((values - mean).abs() <= 1e-12 * span, 0.0, (values - mean).sign())
        # The largest is above the mean and the smallest below it, also where the others weigh less than rounding.
        side = torch.where(values >= span, 1.0, torch.where(values <= 0, -1.0, side))
        ends = torch.lerp(lower.double(), upper.double(), (1.0 + side) / 2.0)
        adjusted = torch.where(differs(bounded, scored), ends, bounded).masked_fill(~scored, torch.nan)
        adjusted = adjusted.to(rewards.dtype)
        return Adjusted(adjusted, Increase(bounded, adjusted, log_weights, lower, upper))
