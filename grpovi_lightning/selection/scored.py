"""Completions with their rewards, from which is selected what the policy learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpovi_lightning.distributed import sum_over_ranks
from grpovi_lightning.errors import TrainingError
from grpovi_lightning.ops.masked import differs
from grpovi_lightning.structures import Rollout


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout and its rewards.

    Attributes:
        rollout: B completions.
        components: name -> [B].
        rewards: [P, G], NaN where a completion could not be scored.
        n_tokens: completion tokens that were sampled for it, those of replaced groups included.
        n_replaced: groups of other prompts than those that the step began with.
        left_out: [P] bool, groups that are not learned from; None: none.
        places: [P, G] of the completions in the groups that they were kept from; None: all were kept.
        first: completions of the prompts that the step began with, where some were replaced; None: `rollout`.
    """

    rollout: Rollout
    components: dict[str, Tensor]
    rewards: Tensor
    n_tokens: Tensor
    n_replaced: int = 0
    left_out: Tensor | None = None
    places: Tensor | None = None
    first: Rollout | None = None

    @property
    def sampled(self) -> Rollout:
        """Completions of the prompts that the step began with."""
        return self.rollout if self.first is None else self.first

    def zero_variance_groups(self) -> list[int]:
        """Return the places of the prompts whose scored rewards do not differ."""
        return (~differs(self.rewards, ~self.rewards.isnan())).flatten().nonzero().flatten().tolist()

    def select(self, prompts: Sequence[int]) -> "ScoredRollout":
        """Return some prompts with their groups; `n_tokens` still counts those of all."""
        rows = self.rollout.rows(prompts)
        return replace(
            self,
            rollout=self.rollout.select(prompts),
            components={name: values[rows] for name, values in self.components.items()},
            rewards=self.rewards[list(prompts)],
            left_out=None if self.left_out is None else self.left_out[list(prompts)],
        )

    def keep(self, places: Tensor) -> "ScoredRollout":
        """Return the completions at these places [P, m] in their groups; `n_tokens` still counts those of all."""
        rows = self.rollout.rows_at(places)
        return replace(
            self,
            rollout=self.rollout.keep(places),
            components={name: values[rows] for name, values in self.components.items()},
            rewards=self.rewards.gather(1, places),
            places=places,
        )

    def of_pool(self, values: Tensor, pool: Tensor) -> Tensor:
        """Return values [P, m] of what was kept at their places in groups of the shape of `pool` [P, G], else NaN."""
        return values if self.places is None else torch.full_like(pool, torch.nan).scatter(1, self.places, values)

    def learnable(self) -> "ScoredRollout":
        """Return it with the reward NaN in groups that are left out: what has no reward is not learned from.

        Raises:
            TrainingError: all groups of all ranks are left out.
        """
        if self.left_out is None:
            return self
        if int(sum_over_ranks((~self.left_out).sum())) == 0:
            raise TrainingError(
                f"step {self.rollout.step}: no prompt to learn from: the selection of prompts left all "
                f"{len(self.rewards)} of them out; lower its threshold, or take more prompts a step"
            )
        return replace(self, rewards=self.rewards.masked_fill(self.left_out[:, None], torch.nan))

    def replaced(
        self, places: Sequence[int], fresh: "ScoredRollout", usable: Sequence[int] | None = None
    ) -> "ScoredRollout":
        """Put groups of `fresh` into these places, as far as they go: the `usable`; None: those with variance."""
        if usable is None:
            zero_variance = set(fresh.zero_variance_groups())
            usable = [p for p in range(len(fresh.rewards)) if p not in zero_variance]
        taken = dict(zip(places, usable, strict=False))
        n_prompts = len(self.rewards)
        order = [n_prompts + taken[p] if p in taken else p for p in range(n_prompts)]
        both = ScoredRollout(
            rollout=Rollout.concatenate([self.rollout, fresh.rollout]),
            components={name: torch.cat([self.components[name], fresh.components[name]]) for name in self.components},
            rewards=torch.cat([self.rewards, fresh.rewards]),
            n_tokens=self.n_tokens + fresh.n_tokens,
            n_replaced=self.n_replaced + len(taken),
            first=self.sampled,
        )
        return both.select(order)
