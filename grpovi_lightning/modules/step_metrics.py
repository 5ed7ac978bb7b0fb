"""What one rollout says in numbers, and what a step hands to the callbacks."""

from typing import Any

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.structures import Rollout


def rollout_metrics(
    rollout: Rollout, rewards: Tensor, components: dict[str, Tensor], advantages: Tensor
) -> dict[str, Tensor]:
    """Scalars of a training rollout under TRL's names.

    Args:
        rollout: B completions.
        rewards: [P, G] raw.
        components: name -> [B].
        advantages: [P, G] that the policy is trained with.
    """
    lengths = rollout.lengths.float()
    spread = rewards.std(dim=1)
    metrics = {
        keys.REWARD: rewards.mean(),
        keys.REWARD_STD: spread.mean(),
        keys.REWARD_BATCH_STD: rewards.std(),
        keys.FRAC_REWARD_ZERO_STD: (rewards == rewards[:, :1]).all(dim=1).float().mean(),
        keys.COMPLETIONS_MEAN_LENGTH: lengths.mean(),
        keys.COMPLETIONS_MIN_LENGTH: lengths.min(),
        keys.COMPLETIONS_MAX_LENGTH: lengths.max(),
        keys.COMPLETIONS_CLIPPED_RATIO: rollout.truncated.float().mean(),
        keys.ADVANTAGE_STD: advantages.std(),
        keys.ADVANTAGE_ABS_MEAN: advantages.abs().mean(),
    }
    for name, values in components.items():
        metrics[keys.rewards_mean(name)] = values.mean()
        metrics[keys.rewards_std(name)] = values.std()
    return metrics


def as_floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers, read from the device at once."""
    return dict(zip(metrics, torch.stack([value.double() for value in metrics.values()]).tolist(), strict=True))


def step_record(rollout: Rollout, rewards: Tensor, **training: Any) -> dict[str, Any]:
    """What callbacks read of a step: plain tensors, texts and lists, because Lightning detaches them one by one.

    Returns:
        prompts (P texts), completions (B texts), completion_ids and completion_mask [B, T], rewards [P, G];
        in training also bounded, the rewards as the adjustment's range let them through, adjusted and advantages,
        all [P, G], and adjustment, the name of its class.
    """
    return {
        "prompts": list(rollout.prompts.texts),
        "completions": list(rollout.texts),
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask,
        "rewards": rewards,
        **training,
    }
