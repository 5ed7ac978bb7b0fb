"""GRPO in NumPy float64, written from the formulas of the papers with loops, to compare the tensor code with."""

import math

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
