"""What one rollout says in numbers, and what a step hands to the callbacks."""

from typing import Any

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.ops.masked import differs, masked_moments
from grpovi_lightning.structures import Rollout


def rollout_metrics(
    lengths: Tensor, truncated: Tensor, rewards: Tensor, components: dict[str, Tensor], advantages: Tensor
) -> dict[str, Tensor]:
    """Scalars of a training rollout under TRL's names.

    Args:
        lengths: [P, G] tokens of the completions, the end token included.
        truncated: [P, G] bool, those without an end token.
        rewards: [P, G] raw, NaN where a completion could not be scored.
        components: name -> [P, G], likewise.
        advantages: [P, G] that the policy is trained with.

    Returns:
        name -> scalar; the names do not depend on the values, because every rank must have the same. A mean over
        nothing is NaN.
    """
    lengths = lengths.float()
    ended = lengths[~truncated]
    if not ended.numel():
        ended = lengths.new_zeros(1)
    scored = ~rewards.isnan()
    _, spread = masked_moments(rewards, scored)
    spread = spread[scored.sum(dim=1) > 1]
    metrics = {
        keys.REWARD: rewards[scored].mean(),
        keys.REWARD_STD: spread.mean() if spread.numel() else spread.new_zeros(()),
        keys.REWARD_BATCH_STD: _std(rewards[scored], of_fewer_than_two=0.0),
        keys.FRAC_REWARD_ZERO_STD: (~differs(rewards, scored)).float().mean(),
        keys.FRAC_UNSCORABLE: (~scored).float().mean(),
        keys.COMPLETIONS_MEAN_LENGTH: lengths.mean(),
        keys.COMPLETIONS_MIN_LENGTH: lengths.min(),
        keys.COMPLETIONS_MAX_LENGTH: lengths.max(),
        keys.COMPLETIONS_CLIPPED_RATIO: truncated.float().mean(),
        keys.COMPLETIONS_MEAN_TERMINATED_LENGTH: ended.mean(),
        keys.COMPLETIONS_MIN_TERMINATED_LENGTH: ended.min(),
        keys.COMPLETIONS_MAX_TERMINATED_LENGTH: ended.max(),
        keys.ADVANTAGE_STD: advantages.std(),
        keys.ADVANTAGE_ABS_MEAN: advantages.abs().mean(),
    }
    for name, values in components.items():
        known = values[~values.isnan()]
        metrics[keys.rewards_mean(name)] = known.mean()
        metrics[keys.rewards_std(name)] = _std(known, of_fewer_than_two=torch.nan)
    return metrics


def _std(values: Tensor, of_fewer_than_two: float) -> Tensor:
    """Standard deviation (Bessel) of [N], without torch's warning where there is none."""
    return values.std() if values.numel() > 1 else values.new_full((), of_fewer_than_two)


def as_floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers, read from the device at once."""
    return dict(zip(metrics, torch.stack([value.double() for value in metrics.values()]).tolist(), strict=True))


def step_record(rollout: Rollout, rewards: Tensor, **training: Any) -> dict[str, Any]:
    """What callbacks read of a step: plain tensors, texts and lists, because Lightning detaches them one by one.

    Returns:
        prompts (P texts), completions (B texts), completion_ids and completion_mask [B, T], rewards [P, G], NaN
        where a completion could not be scored; in training also bounded, the rewards as the adjustment's range let
        them through, adjusted and advantages, all [P, G]; adjustment, the name of its class; and sampled, ids and
        mask of the completions before any resampling.
    """
    return {
        "prompts": list(rollout.prompts.texts),
        "completions": list(rollout.texts),
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask,
        "rewards": rewards,
        **training,
    }
