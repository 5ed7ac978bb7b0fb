"""Dynamic sampling: groups that cannot teach are replaced by other prompts' groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
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
        n_replaced: groups that took the place of silent ones.
    """

    rollout: Rollout
    components: dict[str, Tensor]
    rewards: Tensor
    n_tokens: Tensor
    n_replaced: int = 0

    def silent_groups(self) -> list[int]:
        """Places of the prompts whose scored rewards do not differ."""
        return (~differs(self.rewards, ~self.rewards.isnan())).flatten().nonzero().flatten().tolist()

    def select(self, prompts: Sequence[int]) -> "ScoredRollout":
        """Some prompts with their groups; the tokens still count for all."""
        rows = self.rollout.rows(prompts)
        return replace(
            self,
            rollout=self.rollout.select(prompts),
            components={name: values[rows] for name, values in self.components.items()},
            rewards=self.rewards[list(prompts)],
        )

    def replaced(self, silent: Sequence[int], fresh: "ScoredRollout") -> "ScoredRollout":
        """Puts the groups of `fresh` that have something to say into the places of silent ones, as far as they go."""
        quiet = set(fresh.silent_groups())
        speaking = [p for p in range(len(fresh.rewards)) if p not in quiet]
        places = dict(zip(silent, speaking, strict=False))
        n_prompts = len(self.rewards)
        order = [n_prompts + places[p] if p in places else p for p in range(n_prompts)]
        both = ScoredRollout(
            rollout=Rollout.concatenate([self.rollout, fresh.rollout]),
            components={name: torch.cat([self.components[name], fresh.components[name]]) for name in self.components},
            rewards=torch.cat([self.rewards, fresh.rewards]),
            n_tokens=self.n_tokens + fresh.n_tokens,
            n_replaced=self.n_replaced + len(places),
        )
        return both.select(order)


class DynamicResampling:
    """Replaces groups whose rewards are all equal by groups of spare prompts (DAPO, arXiv 2503.14476, section 3.2).

    DAPO samples until the batch is full; here a step tries a bounded number of times, and keeps the silent groups
    that are left. Every token that is sampled counts in `num_tokens`, also of groups that are thrown away.
    """

    def __init__(self, max_tries: int = 3) -> None:
        """Takes how often a step samples again; the data module must hand out `spare_prompts_per_step`."""
        if max_tries < 1:
            raise UserError(f"dynamic resampling max_tries: got {max_tries}, expected at least 1")
        self.max_tries = max_tries
