"""What one rollout says in numbers, and what a step hands to the callbacks."""

from typing import Any

import torch
from torch import Tensor, nn

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.ops.masked import differs, masked_moments
from grpovi_lightning.structures import Experience, Rollout


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


def pair_agreement(rewards: Tensor, observed: Tensor) -> Tensor:
    """Share of the pairs within groups that `rewards` orders as `observed` does, both [P, G], NaN where not scored.

    Pairs that `observed` rates equal do not count, and one that only `rewards` rates equal counts half; NaN where no
    pair counts. It is the accuracy of a reward model on the policy's own completions (arXiv 2503.15477, Section 4).
    """
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], offset=1, device=rewards.device)
    ours, theirs = (values[:, first] - values[:, second] for values in (rewards, observed))
    counts = ~ours.isnan() & ~theirs.isnan() & (theirs != 0)
    return ((1 + ours.sign() * theirs.sign()) / 2)[counts].mean()


def as_floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers, read from the device at once."""
    return dict(zip(metrics, torch.stack([value.double() for value in metrics.values()]).tolist(), strict=True))


def step_record(rollout: Rollout, rewards: Tensor, **training: Any) -> dict[str, Any]:
    """What callbacks read of a step: plain tensors, texts and lists, because Lightning detaches them one by one.

    Returns:
        prompts (P texts), prompt_lengths [P] in tokens, completions (B texts), completion_ids and completion_mask
        [B, T], has_reference, whether a reference policy saw them, rewards [P, G], NaN where a completion could not
        be scored; in training also bounded, the rewards as the adjustment's range let them through, adjusted and
        advantages, all [P, G]; adjustment, the name of its class; sampled, ids and mask of the completions before
        any resampling; work, see `step_work`; and problems, lines that whoever runs this should hear of.
    """
    return {
        "prompts": list(rollout.prompts.texts),
        "prompt_lengths": rollout.prompt_mask.sum(dim=1),
        "completions": list(rollout.texts),
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask,
        "has_reference": rollout.ref_logprobs is not None,
        "rewards": rewards,
        **training,
    }


def step_work(
    policy: LanguageModel | None, experience: Experience, num_iterations: int, skip_silent_groups: bool
) -> dict[str, Any]:
    """What the policy is, and how often it goes over the rollout of a step, for counting FLOPs.

    Returns:
        body_weights and head_weights, see `matrix_weights`; dtype that the matrices are multiplied in; whether the
        updates run a prompt once for its group, runs_prompts_once; num_iterations; whether the log-probabilities
        before the updates took a pass of their own, old_pass; and learned, [P] bool, the groups that the updates see.
    """
    assert policy is not None
    heard = torch.where(experience.loss_mask.any(dim=1), experience.advantages, 0.0)
    speaks = experience.rollout.grouped(heard.abs()).amax(dim=1) > 0
    body, head = matrix_weights(policy.model)
    device = policy.device.type
    mixed = torch.is_autocast_enabled(device)
    return {
        "body_weights": body,
        "head_weights": head,
        "dtype": torch.get_autocast_dtype(device) if mixed else next(policy.model.parameters()).dtype,
        "runs_prompts_once": policy.runs_prompts_once,
        "num_iterations": num_iterations,
        "old_pass": experience.old_logprobs is not None
        and experience.old_logprobs is not experience.rollout.old_logprobs,
        "learned": speaks if skip_silent_groups else torch.ones_like(speaks),
    }


def matrix_weights(model: nn.Module) -> tuple[int, int]:
    """Numbers of a causal LM that a token is multiplied with: in its body, and in the head that predicts the next one.

    Vectors do not count, nor embeddings, which are looked up; an embedding that is the head as well counts there.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    head = getattr(output, "weight", None)
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} | {id(head)}
    body = sum(weights.numel() for weights in model.parameters() if weights.ndim > 1 and id(weights) not in looked_up)
    return body, 0 if head is None else head.numel()
