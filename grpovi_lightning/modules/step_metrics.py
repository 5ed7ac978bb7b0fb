"""What one rollout says in numbers, and what a step hands to the callbacks."""

from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.structures import Rollout


def rollout_metrics(
    rollout: Rollout, rewards: Tensor, components: dict[str, Tensor], raw_advantages: Tensor, advantages: Tensor
) -> dict[str, float]:
    """Scalars of a training rollout under TRL's names.

    Args:
        rollout: B completions.
        rewards: [P, G] raw.
        components: name -> [B].
        raw_advantages: [P, G] what the advantages would be without an adjustment.
        advantages: [P, G].
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
        keys.ADJUSTMENT_ADVANTAGE_COSINE: cosine_similarity(raw_advantages.flatten(), advantages.flatten(), dim=0),
        keys.ADJUSTMENT_SIGN_FLIPS: (raw_advantages * advantages < 0).float().mean(),
    }
    for name, values in components.items():
        metrics[keys.rewards_mean(name)] = values.mean()
        metrics[keys.rewards_std(name)] = values.std()
    return {name: float(value) for name, value in metrics.items()}


def step_record(rollout: Rollout, rewards: Tensor, **training: Any) -> dict[str, Any]:
    """What callbacks read of a step: plain tensors, texts and lists, because Lightning detaches them one by one.

    Returns:
        prompts (P texts), completions (B texts), completion_ids and completion_mask [B, T], rewards [P, G];
        in training also adjusted and advantages [P, G] and adjustment, the name of its class.
    """
    return {
        "prompts": list(rollout.prompts.texts),
        "completions": list(rollout.texts),
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask,
        "rewards": rewards,
        **training,
    }
