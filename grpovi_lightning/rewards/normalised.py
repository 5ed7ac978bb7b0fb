"""A reward on the scale of the initial policy's completions."""

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.distributed import sum_over_ranks
from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.rewards.base import Reward
from grpovi_lightning.rewards.parts import RewardOfParts
from grpovi_lightning.structures import Rollout


class NormalisedReward(RewardOfParts):
    """The total of another reward, shifted and scaled to mean 0 and variance 1 over the initial policy's completions.

    As in arXiv 2503.15477 (500 training prompts x 10 completions): mean and variance are taken once, before the first
    step, and stay fixed for the run. They go into its checkpoints, so a resumed run has the same. What the other reward
    computes is logged as it is, with weight 0.
    """

    def __init__(
        self, reward: Reward, prompts: int = 500, completions: int = 10, name: str = "normalised_reward"
    ) -> None:
        """Choose the sample.

        Args:
            reward: what is normalised.
            prompts: number of training prompts, drawn by the run's seed.
            completions: number of completions that the initial policy writes for each.
            name: the name under which the normalised reward is logged.

        Raises:
            UserError: a number is below 1, the reward learns, or one of its components has the name.
        """
        at_least_one("NormalisedReward ", prompts=prompts, completions=completions)
        if reward.learns:
            raise UserError("NormalisedReward: got a reward that learns, expected one whose scale stays; leave it out")
        if name in reward.weights():
            raise UserError(f"two rewards are named {name!r}; give one of them another `name`")
        super().__init__([reward])
        self.prompts, self.completions, self.name = prompts, completions, name
        self.scale: tuple[float, float] | None = None
        """Mean and standard deviation (Bessel) of the sample's totals; None before they are known."""
        self.bounds = -inf, inf  # with mean 0, some are negative

    def weights(self) -> dict[str, float]:
        return {self.name: 1.0} | dict.fromkeys(self._rewards[0].weights(), 0.0)

    @torch.no_grad()
    def fit(self, sample: Iterable[Rollout]) -> None:
        """Take mean and variance from this rank's part of the sample; called on every rank.

        Completions without a reward do not count.

        Raises:
            UserError: fewer than two completions have a reward, or all rewards are equal.
        """
        totals = torch.cat([self._total(rollout).double() for rollout in sample])
        totals = totals[~totals.isnan()]
        count, total = sum_over_ranks(torch.stack([torch.ones_like(totals).sum(), totals.sum()])).tolist()
        mean = total / max(count, 1)
        std = (float(sum_over_ranks((totals - mean).square().sum())) / max(count - 1, 1)) ** 0.5
        if not std > 0.0:
            raise UserError(
                f"NormalisedReward: got {count:.0f} rewards of mean {mean:g} without variance over {self.prompts} x "
                f"{self.completions} completions of the initial policy, expected rewards that differ; nothing could be "
                "learned from them"
            )
        self.scale = mean, std

    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        return self.begin(rollout)()

    def begin(self, rollout: Rollout) -> Callable[[], dict[str, Tensor]]:
        begun = self._rewards[0].begin(rollout)
        return lambda: self._scaled(begun(), rollout.group_size)

    def _scaled(self, parts: dict[str, Tensor], group_size: int) -> dict[str, Tensor]:
        if self.scale is None:
            raise UserError(
                f"{self.name}: its scale is taken where a policy is trained on it; give the reward that it holds"
            )
        mean, std = self.scale
        return {self.name: (self._rewards[0].total(parts, group_size) - mean) / std, **parts}

    def _total(self, rollout: Rollout) -> Tensor:
        return self._rewards[0].total(self._rewards[0].components(rollout), rollout.group_size)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what goes into checkpoints."""
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.scale = state["scale"]
