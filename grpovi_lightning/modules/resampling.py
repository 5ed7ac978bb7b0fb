"""Dynamic sampling: groups without reward variance are replaced by other prompts' groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor

from grpovi_lightning.distributed import largest_over_ranks
from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.ops.masked import differs
from grpovi_lightning.structures import PromptBatch, Rollout


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout and its rewards.

    Attributes:
        rollout: B completions.
        components: name -> [B].
        rewards: [P, G], NaN where a completion could not be scored.
        n_tokens: completion tokens that were sampled for it, those of replaced groups included.
        n_replaced: groups that took the place of groups without reward variance.
    """

    rollout: Rollout
    components: dict[str, Tensor]
    rewards: Tensor
    n_tokens: Tensor
    n_replaced: int = 0

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
        )

    def replaced(self, places: Sequence[int], fresh: "ScoredRollout") -> "ScoredRollout":
        """Put the groups of `fresh` that have reward variance into these places, as far as they go."""
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
        )
        return both.select(order)


class DynamicResampling:
    """Replaces groups whose rewards are all equal by groups of spare prompts (DAPO, arXiv 2503.14476, section 3.2).

    DAPO samples until the batch is full. Here a step tries a bounded number of times and keeps the groups without
    variance that are left. Every token that is sampled counts in `num_tokens`, also of groups that are thrown away.
    """

    def __init__(self, max_tries: int = 3) -> None:
        """Set the bound.

        Args:
            max_tries: how often a step samples again; the data module must hand out `spare_prompts_per_step`.
        """
        at_least_one("dynamic resampling ", max_tries=max_tries)
        self.max_tries = max_tries

    def __call__(
        self, scored: ScoredRollout, spare: PromptBatch | None, roll_out: Callable[[PromptBatch], ScoredRollout]
    ) -> ScoredRollout:
        """Replace groups without reward variance by those of spare prompts, which `roll_out` samples and scores.

        Raises:
            UserError: the data hands out no spare prompts.
        """
        if spare is None:
            raise UserError("dynamic resampling: got no spare prompts; set the data's `spare_prompts_per_step`")
        used = 0
        for _ in range(self.max_tries):
            zero_variance = scored.zero_variance_groups()
            # The rank that needs the most decides, so that all ranks sample as often.
            wanted = largest_over_ranks(min(len(zero_variance), len(spare) - used))
            if wanted == 0:
                break
            scored = scored.replaced(zero_variance, roll_out(spare.select(range(used, used + wanted))))
            used += wanted
        return scored


def check_spare(resampling: DynamicResampling | None, data: L.LightningDataModule) -> None:
    """Raise `UserError` if spare prompts are handed out that nothing uses, or none where they are needed."""
    spare = getattr(data, "spare_per_step", 0)
    if (resampling is None) != (spare == 0):
        raise UserError(
            f"spare_prompts_per_step: got {spare} with resampling {type(resampling).__name__}; neither has an "
            "effect without the other: set both or none"
        )
