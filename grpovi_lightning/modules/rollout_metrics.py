"""Scalars of one training rollout: rewards, lengths, advantages, agreement of rewards."""

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.ops.masked import differs, masked_extremes, masked_mean, masked_moments


def rollout_metrics(
    lengths: Tensor, truncated: Tensor, rewards: Tensor, components: dict[str, Tensor], advantages: Tensor
) -> dict[str, Tensor]:
    """Return the scalars of a training rollout under TRL's names.

    Args:
        lengths: [P, G] tokens of the completions, the end token included.
        truncated: [P, G] bool, those without an end token.
        rewards: [P, G] raw, NaN where a completion could not be scored.
        components: name -> [P, G], likewise.
        advantages: [P, G] that the policy is trained with.

    Returns:
        name -> scalar. The names do not depend on the values: every rank must have the same. A mean over nothing is
        NaN.
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
        keys.ADVANTAGE_ABS_MAX: advantages.abs().max(),
        keys.LENGTH_REWARD_CORRELATION: rank_correlation(rewards[scored], lengths[scored]),
    }
    for name, values in components.items():
        known = values[~values.isnan()]
        metrics[keys.rewards_mean(name)] = known.mean()
        metrics[keys.rewards_std(name)] = _std(known, of_fewer_than_two=torch.nan)
    return metrics


def _std(values: Tensor, of_fewer_than_two: float) -> Tensor:
    """Return the standard deviation (Bessel) of [N], without torch's warning where there is none."""
    return values.std() if values.numel() > 1 else values.new_full((), of_fewer_than_two)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of [N] and [N], float64, equal values sharing their mean rank.

    0 where one of the two never differs.

    >>> rank_correlation(torch.tensor([1.0, 5.0, 2.0]), torch.tensor([10.0, 30.0, 20.0])).item()
    1.0
    """
    ranks = torch.stack([_mean_ranks(first), _mean_ranks(second)])
    ranks -= ranks.mean(dim=1, keepdim=True)
    scale = ranks.square().sum(dim=1).prod().sqrt()
    return (ranks[0] * ranks[1]).sum() / torch.where(scale > 0, scale, 1.0)


def _mean_ranks(values: Tensor) -> Tensor:
    """Return the rank of each of [N] values from 1, equal ones at the mean of theirs; float64."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[place]


def groups_without_variance(rewards: Tensor, lower: Tensor, upper: Tensor) -> dict[str, Tensor]:
    """Return the shares of groups whose completions are all good, and all bad; see `metric_keys`.

    Args:
        rewards: [P, G] as the range let them through, NaN where a completion could not be scored.
        lower: [P, 1] smallest possible reward.
        upper: [P, 1] largest possible reward.
    """
    values = rewards.double()
    scored = ~values.isnan()
    lowest, highest = masked_extremes(values, scored)
    flat = (lowest == highest) & (scored.sum(dim=1, keepdim=True) > 1)
    side = highest - (lower + upper) / 2
    side = torch.where(side == 0.0, highest - (lowest.amin() + highest.amax()) / 2, side)
    return {
        keys.FRAC_GROUPS_ALL_HIGH: (flat & (side > 0.0)).double().mean(),
        keys.FRAC_GROUPS_ALL_LOW: (flat & (side < 0.0)).double().mean(),
    }


def variance_shares(rewards: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the share that each component has in the variance of the reward within groups; see `metric_keys`.

    Args:
        rewards: [P, G] raw, NaN where a completion could not be scored.
        parts: name -> [P, G], the component times its weight; NaN where it adds nothing.

    Returns:
        key -> scalar; nothing where there are fewer than two components.
    """
    if len(parts) < 2:
        return {}
    scored = ~rewards.isnan()
    total = _from_group_mean(rewards, scored)
    variance = total.square().sum()
    return {
        keys.rewards_variance_share(name): (total * _from_group_mean(part.nan_to_num(), scored)).sum() / variance
        for name, part in parts.items()
    }


def _from_group_mean(values: Tensor, scored: Tensor) -> Tensor:
    """Return the distance of [P, G] from the means of the groups, float64; 0 where not scored."""
    values = values.double()
    return (values - masked_mean(values, scored, dim=1)[:, None]).masked_fill(~scored, 0.0)


def pair_agreement(rewards: Tensor, observed: Tensor) -> Tensor:
    """Return the share of pairs within groups that `rewards` orders as `observed` does; both [P, G].

    Completions of NaN were not scored. Pairs that `observed` rates equal do not count, and one that only `rewards`
    rates equal counts half; NaN where no pair counts. It is the accuracy of a reward model on the policy's own
    completions (arXiv 2503.15477, Section 4).
    """
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], offset=1, device=rewards.device)
    ours, theirs = (values[:, first] - values[:, second] for values in (rewards, observed))
    counts = ~ours.isnan() & ~theirs.isnan() & (theirs != 0)
    return ((1 + ours.sign() * theirs.sign()) / 2)[counts].mean()


def as_floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Return scalar tensors as numbers; they are read from the device at once."""
    return dict(zip(metrics, torch.stack([value.double() for value in metrics.values()]).tolist(), strict=True))
