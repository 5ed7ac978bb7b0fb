"""The range [m, M] that adjusted rewards must stay in."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from grpovi_lightning.distributed import max_over_ranks, sum_over_ranks
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops.masked import masked_extremes, masked_sum

Bounds = tuple[float, float] | None
"""Smallest and largest reward that there can be; None where that is not known before rewards are."""


class RewardRange(nn.Module):
    """Rewards -> rewards to adjust, and the bounds for each prompt.

    A reward of NaN is that of a completion that could not be scored: it stays NaN and moves no bound.
    """

    moves_rewards: bool = False
    """Whether the rewards to adjust can differ from those given."""

    @abstractmethod
    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (rewards to adjust [P, G], lower [P, 1], upper [P, 1]) for raw rewards [P, G]."""

    def bounds(self, rewards: Bounds) -> Bounds:
        """Return what bounds every [m, M] where the raw rewards lie in `rewards`; None: not known."""
        return rewards

    def reward_changed(self) -> None:
        """Forget the rewards seen so far: the reward is another one from here on. Bounds set in the YAML stay."""


class FixedRange(RewardRange):
    """Known bounds, the paper's case: the range of the reward.

    >>> rewards, lower, upper = FixedRange(lower=0.0, upper=1.0, clip=True)(torch.tensor([[1.5, 0.5]]))
    >>> rewards.tolist(), lower.tolist(), upper.tolist()
    ([[1.0, 0.5]], [[0.0]], [[1.0]])
    """

    def __init__(self, lower: float, upper: float, clip: bool = False) -> None:
        """Set the range.

        Args:
            lower: the bound m, in units of the reward.
            upper: the bound M.
            clip: whether a reward outside is moved to the bound; otherwise it is an error that names it.
        """
        super().__init__()
        if not -torch.inf < lower < upper < torch.inf:
            raise UserError(f"reward range: got lower {lower}, upper {upper}; expected finite numbers, lower < upper")
        self.lower, self.upper, self.clip = lower, upper, clip
        self.moves_rewards = clip

    def bounds(self, rewards: Bounds) -> Bounds:
        return self.lower, self.upper

    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outside = (rewards < self.lower) | (rewards > self.upper)
        if self.clip:
            rewards = rewards.clamp(self.lower, self.upper)
        elif bool(outside.any()):
            prompt, member = outside.nonzero()[0].tolist()
            raise UserError(
                f"reward {rewards[prompt, member].item():.6g} of prompt {prompt}, completion {member} is outside the "
                f"range [{self.lower}, {self.upper}]; widen the range or set `clip: true`"
            )
        lower = torch.full_like(rewards[:, :1], self.lower)
        return rewards, lower, torch.full_like(lower, self.upper)


class GroupRange(RewardRange):
    """Each group's own smallest and largest reward: the extremes stay, what lies between moves outwards.

    >>> _, lower, upper = GroupRange()(torch.tensor([[0.5, 2.0, 1.0], [3.0, 3.0, 3.0]]))
    >>> lower.tolist(), upper.tolist()  # around equal rewards any range will do
    ([[0.5], [2.0]], [[2.0], [4.0]])
    """

    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = rewards.double()  # in float32, a large reward plus 1 can be the same number
        lower, upper = masked_extremes(values, ~values.isnan())
        empty = lower > upper  # no member is scored
        lower, upper = torch.where(empty, 0.0, lower), torch.where(empty, 0.0, upper)
        flat = lower == upper
        return rewards, torch.where(flat, lower - 1.0, lower), torch.where(flat, upper + 1.0, upper)


class RunningRange(RewardRange):
    """Smallest and largest reward seen so far in the run, over all ranks: it only ever widens.

    It stands for the paper's [m, M] where a learned reward model has no known range. Where that model itself learns
    during the run, the range starts anew after each of its rounds, because rewards of the model before bound nothing.
    The range is part of the checkpoint, so that a resumed run goes on with it.

    >>> reward_range = RunningRange()
    >>> _ = reward_range(torch.tensor([[0.5, 2.0]]))
    >>> _, lower, upper = reward_range(torch.tensor([[-1.0, 1.0]]))
    >>> lower.tolist(), upper.tolist()
    ([[-1.0]], [[2.0]])
    """

    lower: Tensor
    upper: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lower", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("upper", torch.tensor(-torch.inf, dtype=torch.float64))

    def reward_changed(self) -> None:
        self.lower.fill_(torch.inf)
        self.upper.fill_(-torch.inf)

    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # The smallest as the largest of the negated: one maximum, and one collective over the ranks, for both.
        both = torch.stack([-rewards, rewards]).double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        negated, highest = max_over_ranks(both.amax(dim=(1, 2))).tolist()
        before = self.lower.item(), self.upper.item()
        lower, upper = min(before[0], -negated), max(before[1], highest)
        if (lower, upper) != before:
            self.lower.fill_(lower)
            self.upper.fill_(upper)
        if lower > upper:  # no reward so far, on any rank
            lower, upper = -1.0, 1.0
        elif lower == upper:  # every reward so far is equal; any range around it changes nothing
            lower, upper = lower - 1.0, upper + 1.0
        shape = (rewards.shape[0], 1)
        return rewards, both.new_full(shape, lower), both.new_full(shape, upper)


class SigmoidRange(RewardRange):
    """Rewards bent into (0, 1) by 1 / (1 + exp(-(r - centre) / scale)): bounds for a reward that has none.

    A departure from the paper, which adjusts the reward itself. The bend keeps the order but not the differences,
    so it is a second change against a run on raw rewards: compare with `RangeOnly` of the same range to tell the
    two apart. Rewards more than some 36 scales above the centre are all 1 in float64, and then equal.

    Centre and scale are fitted once: mean and standard deviation over all ranks of the first training batch whose
    rewards differ. A reward that learns is fitted again after each change. Both are part of the checkpoint.

    >>> rewards, lower, upper = SigmoidRange(centre=1.0, scale=2.0)(torch.tensor([[1.0, 3.0, -1.0]]))
    >>> [round(reward, 3) for reward in rewards[0].tolist()]
    [0.5, 0.731, 0.269]
    """

    moves_rewards = True
    centre: Tensor
    scale: Tensor

    def __init__(self, centre: float | None = None, scale: float | None = None) -> None:
        """Set both numbers, or leave out both to fit them.

        Args:
            centre: the reward that becomes 0.5.
            scale: how far from the centre a reward becomes 0.73 or 0.27, in units of the reward.
        """
        super().__init__()
        if (centre is None) != (scale is None):
            raise UserError(f"sigmoid range: got centre {centre}, scale {scale}; give both, or none to fit them")
        if centre is not None and scale is not None and not (abs(centre) < torch.inf and 0.0 < scale < torch.inf):
            raise UserError(
                f"sigmoid range: got centre {centre}, scale {scale}; expected finite numbers, scale above 0"
            )
        self.is_given = centre is not None
        self.register_buffer("centre", torch.tensor(torch.nan if centre is None else centre, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(torch.nan if scale is None else scale, dtype=torch.float64))

    def bounds(self, rewards: Bounds) -> Bounds:
        return 0.0, 1.0

    def reward_changed(self) -> None:
        if not self.is_given:
            self.centre.fill_(torch.nan)
            self.scale.fill_(torch.nan)

    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = rewards.double()
        if bool(self.scale.isnan()):
            self._fit(values)
        if bool(self.scale.isnan()):  # all rewards so far are equal, and stay so in the middle
            bent = torch.where(values.isnan(), values, 0.5)
        else:
            bent = ((values - self.centre) / self.scale).sigmoid()
        lower = torch.zeros_like(bent[:, :1])
        return bent, lower, torch.ones_like(lower)

    def _fit(self, values: Tensor) -> None:
        """Fit mean and standard deviation over all ranks, unless every reward of the batch is equal."""
        scored = ~values.isnan()
        count, total = sum_over_ranks(torch.stack([scored.sum().to(values), masked_sum(values, scored)]))
        mean = total / count
        scale = (sum_over_ranks(masked_sum((values - mean).square(), scored)) / count).sqrt()
        lowest, highest = masked_extremes(values, scored)
        least, most = max_over_ranks(torch.stack([-lowest.amin(), highest.amax()]))
        if bool((most > -least) & (scale > 0.0)):  # a rounded mean gives equal rewards some deviation, too
            self.centre.copy_(mean)
            self.scale.copy_(scale)
