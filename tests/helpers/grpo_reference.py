"""GRPO in NumPy float64, written from the formulas of the papers with loops, to compare the tensor code with."""

import math
from functools import partial

import numpy as np


def advantages(rewards, scale_rewards: str, eps: float = 1e-4):
    """(reward - mean of its group) / (std + eps), std with Bessel's correction over the group or the batch."""
    rewards = [[float(value) for value in group] for group in rewards]
    everything = [value for group in rewards for value in group]
    result = []
    for group in rewards:
        mean = math.fsum(group) / len(group)
        scale = {"group": std(group) + eps, "batch": std(everything) + eps, "none": 1.0}[scale_rewards]
        result.append([(value - mean) / scale if len(set(group)) > 1 else 0.0 for value in group])
    return np.array(result)


def std(values) -> float:
    """Sample standard deviation, divided by n - 1."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def token_loss(lp, old, advantage, epsilon, epsilon_high, beta=0.0, ref=None):
    """(loss, its derivative by lp) of one token: -min(rho A, clip(rho) A) + beta * k3."""
    rho = math.exp(lp - old)
    clipped = min(max(rho, 1 - epsilon), 1 + epsilon_high)
    # The derivative of rho by lp is rho itself; a clipped ratio that is the smaller one is constant.
    cut = clipped * advantage < rho * advantage
    loss, slope = -min(rho * advantage, clipped * advantage), 0.0 if cut else -rho * advantage
    if beta:
        loss += beta * k3(lp, ref)
        slope += beta * (1 - math.exp(ref - lp))
    return loss, slope


def k3(lp: float, ref: float) -> float:
    """exp(ref - lp) - (ref - lp) - 1."""
    return math.exp(ref - lp) - (ref - lp) - 1


def grpo_loss(lp, old, advantage, mask, epsilon=0.2, epsilon_high=None, beta=0.0, ref=None, denominator=None):
    """Mean over sequences of the mean over tokens: (loss, gradient [B, T])."""
    n_rows, length = np.shape(mask)
    high = epsilon if epsilon_high is None else epsilon_high
    total, gradient = 0.0, np.zeros((n_rows, length))
    for b in range(n_rows):
        kept = [t for t in range(length) if mask[b][t]]
        for t in kept:
            args = (lp[b][t], old[b][t], advantage[b], epsilon, high, beta, None if ref is None else ref[b][t])
            loss, slope = token_loss(*args)
            share = 1 / len(kept) / (n_rows if denominator is None else denominator)
            total += loss * share
            gradient[b, t] = slope * share
    return total, gradient


# The whole family. What differs between its members is told in words of the papers, not of the classes.

KL_TERMS = {
    # name: (value, derivative by lp)
    "k1": (lambda lp, ref: lp - ref, lambda lp, ref: 1.0),
    "k2": (lambda lp, ref: 0.5 * (lp - ref) ** 2, lambda lp, ref: lp - ref),
    "k3": (k3, lambda lp, ref: 1 - math.exp(ref - lp)),
    "k3+": (k3, lambda lp, ref: lp - ref),
}


def clipped(rho, advantage, epsilon, epsilon_high, delta=math.inf):
    """(loss, its derivative by log rho) of -min(min(rho, delta) A, clip(rho) A)."""
    raw, inside = min(rho, delta), min(max(rho, 1 - epsilon), 1 + epsilon_high)
    if raw * advantage <= inside * advantage:
        return -raw * advantage, -rho * advantage if rho < delta else 0.0
    return -inside * advantage, 0.0  # the constant end of the clip range


def clipped_above_or_below(log_rho, advantage, epsilon, epsilon_high):
    """GMPO's ratio of a token: at most exp(epsilon_high) where A > 0, at least exp(-epsilon) elsewhere."""
    rho = math.exp(log_rho)
    return min(rho, math.exp(epsilon_high)) if advantage > 0 else max(rho, math.exp(-epsilon))


def policy_loss(
    family,
    lp,
    old,
    advantage,
    mask,
    ref=None,
    weights=None,
    denominator=None,
    *,
    beta=0.0,
    kl="k3",
    epsilon=0.2,
    epsilon_high=None,
    delta=math.inf,
    max_completion_length=None,
    sapo_temperature_pos=1.0,
    sapo_temperature_neg=1.05,
    max_ratio=20.0,
):
    """(loss, gradient [B, T]) of a loss of the family, over a batch that is a whole rollout.

    family: grpo, bnpo, dapo, dr_grpo, gspo, cispo, sapo, gmpo or dppo. lp, old, ref, weights: [B][T] numbers;
    advantage: [B]; mask: [B][T] bools. epsilon_high None is epsilon.
    """
    n_rows, length = np.shape(mask)
    high = epsilon if epsilon_high is None else epsilon_high
    rows = [[t for t in range(length) if mask[b][t]] for b in range(n_rows)]
    n_tokens = sum(len(kept) for kept in rows)
    total, gradient = 0.0, np.zeros((n_rows, length))
    for b, kept in enumerate(rows):
        if family in ("grpo", "gspo", "sapo", "gmpo"):
            share = 1 / max(len(kept), 1) / (denominator or n_rows)
        elif family == "dr_grpo":
            share = 1 / (denominator or n_rows * max_completion_length)
        else:
            share = 1 / (denominator or max(n_tokens, 1))
        one_sided = partial(clipped_above_or_below, advantage=advantage[b], epsilon=epsilon, epsilon_high=high)
        # exp of the mean log ratio is the geometric mean of the ratios
        mean_ratio = math.prod(math.exp(lp[b][t] - old[b][t]) ** (1 / len(kept)) for t in kept)
        for t in kept:
            weight = 1.0 if weights is None else weights[b][t]
            if family == "cispo":
                factor = min(math.exp(lp[b][t] - old[b][t]), high)
                total += share * weight * -factor * advantage[b] * lp[b][t]
                gradient[b, t] += share * weight * -factor * advantage[b]
            elif family == "dppo":
                factor, moved = min(math.exp(lp[b][t] - old[b][t]), max_ratio), math.exp(lp[b][t]) - math.exp(old[b][t])
                inside = moved <= high if advantage[b] > 0 else moved >= -epsilon
                total += share * weight * -factor * advantage[b] * lp[b][t] * inside
                gradient[b, t] += share * weight * -factor * advantage[b] * inside
            elif family == "sapo":
                tau = sapo_temperature_pos if advantage[b] > 0 else sapo_temperature_neg
                rho = math.exp(lp[b][t] - old[b][t])
                gate = 1 / (1 + math.exp(-tau * (rho - 1)))
                total += share * weight * -4 / tau * gate * advantage[b]
                gradient[b, t] += share * weight * -4 * gate * (1 - gate) * rho * advantage[b]
            elif family == "gmpo":
                factor = math.prod(one_sided(lp[b][o] - old[b][o]) ** (1 / len(kept)) for o in kept)
                total += share * weight * -factor * advantage[b]
                for other in kept:
                    inside = one_sided(lp[b][other] - old[b][other]) == math.exp(lp[b][other] - old[b][other])
                    gradient[b, other] += share * weight * -factor * advantage[b] / len(kept) * inside
            elif family == "gspo":
                loss, slope = clipped(mean_ratio, advantage[b], epsilon, high, delta)
                total += share * weight * loss
                for other in kept:  # the shared ratio moves with every token of the sequence
                    gradient[b, other] += share * weight * slope / len(kept)
            else:
                loss, slope = clipped(math.exp(lp[b][t] - old[b][t]), advantage[b], epsilon, high, delta)
                total += share * weight * loss
                gradient[b, t] += share * weight * slope
            if beta:
                value, derivative = KL_TERMS[kl]
                total += share * beta * value(lp[b][t], ref[b][t])
                gradient[b, t] += share * beta * derivative(lp[b][t], ref[b][t])
    return total, gradient
