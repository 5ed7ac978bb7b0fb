"""Advantages and totals in plain Python, one completion at a time; NaN is a completion without a reward."""

import math
from statistics import fmean, stdev, variance


def group_advantages(rewards, scale_rewards: str, eps: float = 1e-4) -> list[list[float]]:
    """(reward - mean of its group) / (std + eps) over the completions that have one; 0 for those that have none."""
    everything = [value for group in rewards for value in present(group)]
    result = []
    for group in rewards:
        known = present(group)
        if len(set(known)) < 2:
            result.append([0.0] * len(group))
            continue
        scale = {"group": stdev(known) + eps, "batch": stdev(everything) + eps, "none": 1.0}[scale_rewards]
        result.append([0.0 if math.isnan(value) else (value - fmean(known)) / scale for value in group])
    return result


def leave_one_out_advantages(rewards) -> list[list[float]]:
    """Each reward minus the mean of the others that have one."""
    result = []
    for group in rewards:
        row = []
        for i, value in enumerate(group):
            others = present(group[:i] + group[i + 1 :])
            row.append(value - fmean(others) if others and not math.isnan(value) else 0.0)
        result.append(row)
    return result


def length_weighted_advantages(rewards, lengths) -> list[list[float]]:
    """OPO: each reward minus the mean of its group in which a completion counts as often as it has tokens."""
    result = []
    for group, tokens in zip(rewards, lengths, strict=True):
        every_token = [r for r, n in zip(group, tokens, strict=True) if not math.isnan(r) for _ in range(n)]
        different = len(set(present(group))) > 1
        result.append([r - fmean(every_token) if different and not math.isnan(r) else 0.0 for r in group])
    return result


def maximum_likelihood_advantages(rewards) -> list[list[float]]:
    """MaxRL: (reward - mean of its group) / mean; 0 where no reward is above 0."""
    result = []
    for group in rewards:
        known = present(group)
        some = len(set(known)) > 1
        result.append([(r - fmean(known)) / fmean(known) if some and not math.isnan(r) else 0.0 for r in group])
    return result


def focal_advantages(rewards, gamma: float) -> list[list[float]]:
    """F-GRPO over GRPO's advantages: each times (1 - mean of its group) ** gamma."""
    plain = group_advantages(rewards, "group")
    weights = [(1 - fmean(present(group) or [0.0])) ** gamma for group in rewards]
    return [[weight * value for value in group] for weight, group in zip(weights, plain, strict=True)]


def whitened_advantages(rewards, lengths) -> list[list[float]]:
    """REINFORCE++ with group baseline: rewards minus their group's mean, whitened over a list of all tokens."""
    centred = group_advantages(rewards, "none")
    scored = [
        (value, n)
        for group, values, tokens in zip(rewards, centred, lengths, strict=True)
        for reward, value, n in zip(group, values, tokens, strict=True)
        if not math.isnan(reward)
    ]
    every_token = [value for value, n in scored for _ in range(n)]
    mean = fmean(every_token) if every_token else 0.0
    spread = math.sqrt((variance(every_token) if len(every_token) > 1 else 0.0) + 1e-8)
    return [
        [0.0 if math.isnan(reward) else (value - mean) / spread for reward, value in zip(group, values, strict=True)]
        for group, values in zip(rewards, centred, strict=True)
    ]


def total(components: dict[str, list[float]], weights: dict[str, float], group_size: int) -> list[float]:
    """The weighted sum of the components that score at least one completion of the prompt, or NaN."""
    n_rows = len(next(iter(components.values())))
    result = []
    for start in range(0, n_rows, group_size):
        rows = range(start, start + group_size)
        applying = [name for name, w in weights.items() if w != 0 and present(components[name][i] for i in rows)]
        for i in rows:
            result.append(sum(weights[name] * components[name][i] for name in applying) if applying else math.nan)
    return result


def present(values) -> list[float]:
    """The numbers among some values."""
    return [value for value in values if not math.isnan(value)]
