"""What a training step hands to the report and to callbacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.adjustment import Adjusted, Increase, VarianceIncrease
from grpovi_lightning.modules.update_metrics import UpdateResult
from grpovi_lightning.rewards.base import RewardUpdate
from grpovi_lightning.selection import ScoredRollout
from grpovi_lightning.structures import Experience, Rollout

_OUTCOME, _COST = "outcome", "cost"


@dataclass(frozen=True)
class StepOutcome:
    """What one step of GRPO or GRPOVI computed, on this rank.

    Attributes:
        sampled: the completions of the step's prompts, before any resampling.
        scored: rollout and raw rewards [P, G] that were trained on; NaN where a completion could not be scored, or its
            group was left out. With a selection of completions, G is the number that was kept.
        adjusted: what the adjustment made of the rewards.
        advantages: [P, G], 0 where a completion could not be scored.
        experience: what the updates learned from.
        updates: scalars of each optimiser step, over all ranks.
        learned: what the reward learned from the rollout afterwards.
        adjustment: name of the adjustment's class, for messages.
        adjusts: whether the adjustment can change rewards; False for GRPO.
        pool: what `scored` was selected from. Scalars of rewards and lengths are those of the pool.
    """

    sampled: Rollout
    scored: ScoredRollout
    adjusted: Adjusted
    advantages: Tensor
    experience: Experience
    updates: Sequence[UpdateResult]
    learned: RewardUpdate
    adjustment: str
    adjusts: bool
    pool: ScoredRollout

    @property
    def rollout(self) -> Rollout:
        """B completions that were trained on."""
        return self.scored.rollout

    @property
    def rewards(self) -> Tensor:
        """[P, G] raw rewards, in units of the reward."""
        return self.scored.rewards

    def of_pool(self, values: Tensor) -> Tensor:
        """Return values of what was trained on at their places in the pool, [P, G]; NaN for what was not kept."""
        return self.scored.of_pool(values, self.pool.rewards)

    def increase(self, counterfactual: VarianceIncrease) -> Increase:
        """Return what the adjustment did to the rewards; for GRPO, what the variance increase would have done."""
        if self.adjusted.increase is not None:
            return self.adjusted.increase
        if self.adjusts:
            return counterfactual.describe(self.adjusted.rewards, self.rewards, self.rollout)
        return counterfactual.increase(self.rewards, self.rollout)

    @property
    def bounded(self) -> Tensor:
        """[P, G] rewards as the adjustment's range let them through: raw, or moved into it."""
        increase = self.adjusted.increase
        return self.rewards if increase is None else increase.rewards


@dataclass(frozen=True)
class PolicyWork:
    """How often the policy went over the rollout of a step, for counting FLOPs.

    Attributes:
        body_weights: numbers that every token is multiplied with; see `matrix_weights`.
        head_weights: numbers that every prediction is multiplied with.
        dtype: in which the matrices are multiplied.
        runs_prompts_once: whether the updates run a prompt once for its whole group.
        num_iterations: passes of the updates over the rollout.
        old_pass: whether the log-probabilities or entropies before the updates took a pass of their own.
        trained: [P] bool, the groups that the updates ran.
    """

    body_weights: int
    head_weights: int
    dtype: torch.dtype
    runs_prompts_once: bool
    num_iterations: int
    old_pass: bool
    trained: Tensor


@dataclass(frozen=True)
class StepCost:
    """What a step took.

    Attributes:
        seconds: of `step_time` and of each phase; the mean over ranks.
        n_tokens: completion tokens sampled for training so far, over all ranks.
        work: of the policy, on this rank.
    """

    seconds: Mapping[str, float]
    n_tokens: int
    work: PolicyWork


def as_outputs(outcome: StepOutcome, cost: StepCost) -> dict[str, Any]:
    """Return the mapping in which Lightning takes what a training step returns."""
    return {_OUTCOME: outcome, _COST: cost}


def outcome_of(outputs: Any) -> StepOutcome | None:
    """Return the outcome in what a callback is handed; None where a module returned something else."""
    return outputs.get(_OUTCOME) if isinstance(outputs, Mapping) else None


def cost_of(outputs: Any) -> StepCost | None:
    """Return the cost in what a callback is handed; None where a module returned something else."""
    return outputs.get(_COST) if isinstance(outputs, Mapping) else None
