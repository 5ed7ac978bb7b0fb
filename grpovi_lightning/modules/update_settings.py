"""Settings of the updates on a rollout."""

from dataclasses import dataclass

from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.losses import ImportanceSampling, TokenSelection


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of the updates on a rollout, under TRL's names where it has them.

    Attributes:
        max_grad_norm: gradients are clipped to this norm.
        num_iterations: passes over each rollout.
        num_minibatches: updates in each pass; it divides the prompts of a step and process.
        prompts_per_micro_batch: prompts, each with its whole group, in one forward pass; None: no limit. Changes
            memory, not the gradient.
        tokens_per_micro_batch: tokens of one such pass, padding included; None: no limit.
        mask_truncated_completions: leaves completions without an end token out of the loss (DAPO). Denominators that
            count tokens then count those of the others.
        skip_zero_advantage_groups: spares the forward pass of groups without any gradient: no advantage differs from 0
            and no KL penalty pulls. The gradient stays the same; `entropy` and the clip ratios are then means over the
            groups that do go through the model.
        importance_sampling: corrects for a sampler that differs from the trained policy, as in mixed precision; None:
            as the decoder asks for.
        token_selection: on which tokens the policy loss is taken; None: all.
    """

    max_grad_norm: float = 1.0
    num_iterations: int = 1
    num_minibatches: int = 1
    prompts_per_micro_batch: int | None = None
    tokens_per_micro_batch: int | None = None
    mask_truncated_completions: bool = False
    skip_zero_advantage_groups: bool = False
    importance_sampling: ImportanceSampling | None = None
    token_selection: TokenSelection | None = None

    def __post_init__(self) -> None:
        if not self.max_grad_norm > 0:
            raise UserError(f"updates.max_grad_norm: got {self.max_grad_norm}, expected above 0")
        counts = ("num_iterations", "num_minibatches", "prompts_per_micro_batch", "tokens_per_micro_batch")
        at_least_one("updates.", **{name: getattr(self, name) for name in counts})

    @property
    def per_rollout(self) -> int:
        """Optimiser steps on one rollout."""
        return self.num_iterations * self.num_minibatches
