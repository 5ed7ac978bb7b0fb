"""The range [m, M] that adjusted rewards must stay in."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from grpovi_lightning.distributed import max_over_ranks, sum_over_ranks
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops.masked import masked_extremes, masked_sum


class RewardRange(nn.Module):
    """Rewards [P, G] -> (rewards to adjust [P, G], lower [P, 1], upper [P, 1]).

    A reward of NaN is that of a completion that could not be scored: no range takes notice of it, and it stays NaN.
    """

    moves_rewards: bool = False
    """Whether the rewards to adjust can be others than those given."""

    @abstractmethod
    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rewards, moved into the range only where the YAML says so, and the bounds."""

    def reward_changed(self) -> None:
        """The reward is another one from here on: forgets what was seen of the one before. Given bounds stay."""


class FixedRange(RewardRange):
    """Known bounds, the paper's case: the range of the reward.

    A reward outside is an error that names it, or is clipped when `clip` says so.
    """

    def __init__(self, lower: float, upper: float, clip: bool = False) -> None:
        """Takes the bounds in units of the reward, and whether rewards outside are clipped to them."""
        super().__init__()
        if not -torch.inf < lower < upper < torch.inf:
            raise UserError(f"reward range: got lower {lower}, upper {upper}; expected finite numbers, lower < upper")
        self.lower, self.upper, self.clip = lower, upper, clip
        self.moves_rewards = clip

    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The fixed bounds for every prompt."""
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
    """Each group's own smallest and largest reward: the extremes stay, what lies between moves outwards."""

    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The group's bounds; a group of equal rewards gets a range around its value, which changes nothing."""
        values = rewards.double()  # in which 1 more or less is another number
        lower, upper = masked_extremes(values, ~values.isnan())
        empty = lower > upper  # no member is scored
        lower, upper = torch.where(empty, 0.0, lower), torch.where(empty, 0.0, upper)
        flat = lower == upper
        return rewards, torch.where(flat, lower - 1.0, lower), torch.where(flat, upper + 1.0, upper)


class RunningRange(RewardRange):
    """Smallest and largest reward seen so far in the run, over all ranks: it only ever widens.

    For a learned reward model, whose range is not known beforehand, this stands for the paper's [m, M]. Where the model
    learns while the policy does, the range starts anew after each of its rounds: what the model before would have said
    bounds nothing.
    It is part of the checkpoint, so that a resumed run goes on with the same range.
    """

    lower: Tensor
    upper: Tensor

    def __init__(self) -> None:
        """Starts empty: the first batch sets the range."""
        super().__init__()
        self.register_buffer("lower", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("upper", torch.tensor(-torch.inf, dtype=torch.float64))

    def reward_changed(self) -> None:
        """The next batch sets the range."""
        self.lower.fill_(torch.inf)
        self.upper.fill_(-torch.inf)

    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widens the range by this batch, then returns it for every prompt."""
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
    so against a run on raw rewards it is a second change: compare with `RangeOnly` of the same range to tell the
    two apart. Rewards more than some 36 scales above the centre are all 1 in float64, and then equal.

    Centre and scale are fitted once, as mean and standard deviation of the first training batch over all ranks that
    has any spread, and stay; where the reward learns, until it changes. They are part of the checkpoint.
    """

    moves_rewards = True
    centre: Tensor
    scale: Tensor

    def __init__(self, centre: float | None = None, scale: float | None = None) -> None:
        """Takes both numbers, in units of the reward, or none, to fit them."""
        super().__init__()
        if (centre is None) != (scale is None):
            raise UserError(f"sigmoid range: got centre {centre}, scale {scale}; give both, or none to fit them")
        if centre is not None and scale is not None and not (abs(centre) < torch.inf and 0.0 < scale < torch.inf):
            raise UserError(
                f"sigmoid range: got centre {centre}, scale {scale}; expected finite numbers, scale above 0"
            )
        self.is_given = centre is not None
        fitted = (torch.nan, torch.nan) if centre is None or scale is None else (centre, scale)
        self.register_buffer("centre", torch.tensor(fitted[0], dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(fitted[1], dtype=torch.float64))

    def reward_changed(self) -> None:
        """The next batch is fitted; numbers that were given stay."""
        if not self.is_given:
            self.centre.fill_(torch.nan)
            self.scale.fill_(torch.nan)

    def forward(self, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bent rewards, [P, G] float64, and the bounds 0 and 1."""
        values = rewards.double()
        if bool(self.scale.isnan()):
            self._fit(values)
        bent = torch.where(values.isnan(), values, 0.5) if bool(self.scale.isnan()) else self._bend(values)
        lower = torch.zeros_like(bent[:, :1])
        return bent, lower, torch.ones_like(lower)

    def _bend(self, values: Tensor) -> Tensor:
        return ((values - self.centre) / self.scale).sigmoid()

    def _fit(self, values: Tensor) -> None:
        """Mean and standard deviation over all ranks; left open while every reward so far is equal."""
        scored = ~values.isnan()
        count, total = sum_over_ranks(torch.stack([scored.sum().to(values), masked_sum(values, scored)]))
        mean = total / count
        scale = (sum_over_ranks(masked_sum((values - mean).square(), scored)) / count).sqrt()
        lowest, highest = masked_extremes(values, scored)
        least, most = max_over_ranks(torch.stack([-lowest.amin(), highest.amax()]))
        if bool((most > -least) & (scale > 0.0)):  # a rounded mean gives equal rewards some deviation, too
            self.centre.copy_(mean)
            self.scale.copy_(scale)
