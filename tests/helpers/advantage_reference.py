"""Advantages and totals in plain Python, one completion at a time; NaN is a completion without a reward."""

import math
from statistics import fmean, stdev


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
