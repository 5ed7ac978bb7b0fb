"""The report of a training step: its time is taken, its scalars are computed, callbacks get its outcome."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any

import lightning as L
import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import Increase, increase_metrics
from grpovi_lightning.advantages import Advantage
from grpovi_lightning.distributed import gather_named_rows, on_gathered_rows
from grpovi_lightning.modules.outcome import StepOutcome, as_outputs
from grpovi_lightning.modules.rollout_metrics import (
    as_floats,
    groups_without_variance,
    pair_agreement,
    rollout_metrics,
    variance_shares,
)
from grpovi_lightning.modules.update_metrics import combined_metrics
from grpovi_lightning.structures import PromptBatch


def reported(step: Callable[[Any, PromptBatch, int], StepOutcome]) -> Callable[..., dict[str, Any]]:
    """Wrap a training step that returns its outcome, so that the step itself holds the algorithm and nothing else.

    The module's `clock` runs while the step does. What is computed for the report alone comes after it, in the module's
    `close_step`, and costs no `step_time`.
    """

    @wraps(step)
    def training_step(self: Any, prompts: PromptBatch, batch_idx: int) -> dict[str, Any]:
        self.clock.start()
        outcome = step(self, prompts, batch_idx)
        seconds = self.clock.stop()
        return as_outputs(outcome, self.close_step(outcome, seconds))

    return training_step


def announce_diagnostics(module: L.LightningModule, needs_reference: bool) -> None:
    """Tell the user where the diagnostics cannot use the paper's weights."""
    if not needs_reference:
        done = "the adjustment did" if module.adjustment.adjusts else "GRPOVI would have done"  # type: ignore[union-attr]
        module.print(
            "adjustment/*: no update needs the reference policy, so it does not score what is trained on, and what "
            f"{done} is logged for uniform weights; set model.counterfactual for the paper's weights"
        )


def step_scalars(
    outcome: StepOutcome, increase: Increase, advantage: Advantage, weights: Mapping[str, float]
) -> dict[str, float]:
    """Return the scalars of a step over the completions of all ranks.

    Args:
        outcome: of this rank.
        increase: what the run's adjustment made of the rewards, or what a variance increase would make of them.
        advantage: adjusted rewards to advantages.
        weights: of the reward components. Those of weight 0 are not trained on: their agreement with the reward is
            reported.
    """
    rollout, components = outcome.pool.rollout, outcome.pool.components
    rows: dict[str, Tensor] = {
        "lengths": rollout.grouped(rollout.lengths),
        "truncated": rollout.grouped(rollout.truncated),
        "rewards": outcome.pool.rewards,
        "trained": outcome.rewards,
        "trained_lengths": outcome.rollout.grouped(outcome.rollout.lengths),
        "advantages": outcome.advantages,
    }
    rows |= {f"rewards/{name}": rollout.grouped(values) for name, values in components.items()}
    rows |= {f"increase/{field.name}": getattr(increase, field.name) for field in fields(increase)}
    rows = gather_named_rows(rows)
    rewards = rows["rewards"]
    whole = Increase(**{field.name: rows[f"increase/{field.name}"] for field in fields(increase)})
    with on_gathered_rows():  # the batch's statistics are in these rows: no rank is asked again
        lengths = rows["trained_lengths"]
        before, after = (_advantages(advantage, values, lengths) for values in (rows["trained"], whole.adjusted))
    scalars = rollout_metrics(
        rows["lengths"],
        rows["truncated"],
        rewards,
        {name: rows[f"rewards/{name}"] for name in components},
        rows["advantages"],
    )
    scalars |= groups_without_variance(whole.rewards, whole.lower, whole.upper)
    trained = {name: weight * rows[f"rewards/{name}"] for name, weight in weights.items() if weight != 0.0}
    scalars |= variance_shares(rewards, trained)
    observed = [name for name in weights if name not in trained]
    scalars |= {keys.pair_agreement(name): pair_agreement(rewards, rows[f"rewards/{name}"]) for name in observed}
    scalars |= increase_metrics(whole, before, after)
    return as_floats(scalars) | combined_metrics(list(outcome.updates))


def _advantages(advantage: Advantage, rewards: Tensor, lengths: Tensor) -> Tensor:
    """Return advantages [P, G]; NaN where some reward is not in their domain, as that of no update has to be."""
    if bool(advantage.outside(rewards).any()):
        return torch.full_like(rewards, torch.nan)
    return advantage(rewards, lengths)
