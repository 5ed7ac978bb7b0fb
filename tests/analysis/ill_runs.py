"""Runs with one planted disease each, as real event files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from synthetic_runs import INCREASE, Scalars, write_events, write_status

STEPS = range(60)
EVALUATIONS = range(0, 61, 10)
Curve = Callable[[float], float]
"""share of the run that is over -> value"""


def curve(of: Curve, noise: float = 0.0, seed: int = 0, steps: range = STEPS) -> dict[int, float]:
    """A curve over the run, with normal noise."""
    shift = np.random.default_rng(seed).normal(0.0, noise, len(steps))
    return {step: of(step / 60) + float(extra) for step, extra in zip(steps, shift, strict=True)}


def saturating(start: float, end: float) -> Curve:
    """A rise that slows down, as rewards rise."""
    return lambda t: end - (end - start) * float(np.exp(-2.0 * t))


def healthy() -> dict[str, dict[int, float]]:
    """What a healthy run of 60 steps logs, as noisy as real ones: two components are trained on, gold is observed."""
    reward, gold = saturating(-0.9, 1.0), saturating(0.26, 0.48)
    return {
        "reward": curve(reward, 0.06, 1),
        "reward_batch_std": curve(lambda t: 0.35),
        "frac_reward_zero_std": curve(lambda t: 0.1 + 0.2 * t, 0.02, 2),
        "frac_groups_all_high": curve(lambda t: 0.2 * t),
        "frac_groups_all_low": curve(lambda t: 0.1),
        "kl": curve(lambda t: 0.5 * t, 0.03, 3),
        "entropy": curve(lambda t: 2.6 - 0.5 * t, 0.05, 4),
        "clip_ratio/region_mean": curve(lambda t: 0.05),
        "completions/mean_length": curve(lambda t: 20 - 6 * t, 0.5, 5),
        "completions/clipped_ratio": curve(lambda t: 0.05),
        "completions/length_reward_correlation": curve(lambda t: -0.2, 0.15, 6),
        "advantages/abs_max": curve(lambda t: 2.4),
        "adjustment/sign_flips": curve(lambda t: 0.22, 0.05, 7),
        "rewards/gold/mean": curve(gold, 0.03, 8),
        "rewards/gold/std": curve(lambda t: 0.15),
        "rewards/gold/pair_agreement": curve(lambda t: 0.65, 0.05, 9),
        "rewards/style/mean": curve(reward, 0.06, 10),
        "rewards/style/variance_share": curve(lambda t: 0.7, 0.05, 11),
        "rewards/fact/mean": curve(reward, 0.06, 12),
        "rewards/fact/variance_share": curve(lambda t: 0.3, 0.05, 13),
        "eval/reward": curve(reward, 0.05, 14, EVALUATIONS),
        "eval/rewards/gold/mean": curve(gold, 0.015, 15, EVALUATIONS),
        "eval/kl": curve(lambda t: 0.5 * t, 0.03, 16, EVALUATIONS),
    }


def _falling_gold() -> Scalars:
    def gold(t: float) -> float:
        return 0.26 + t - t * t  # best in the middle

    return {
        "rewards/gold/mean": curve(gold, 0.03, 8),
        "eval/rewards/gold/mean": curve(gold, 0.015, 15, EVALUATIONS),
    }


def _flat_gold() -> Scalars:
    return {
        "rewards/gold/mean": curve(lambda t: 0.26, 0.01, 8),
        "eval/rewards/gold/mean": curve(lambda t: 0.26, 0.01, 15, EVALUATIONS),
    }


def _plateau() -> Scalars:
    def until(start: float, end: float) -> Curve:
        return lambda t: start + (end - start) * min(1.0, 4 * t)

    return {
        "reward": curve(until(-0.9, 1.0), 0.03, 1),
        "eval/reward": curve(until(-0.9, 1.0), 0.01, 14, EVALUATIONS),
        "rewards/gold/mean": curve(until(0.26, 0.48), 0.03, 8),
        "eval/rewards/gold/mean": curve(until(0.26, 0.48), 0.015, 15, EVALUATIONS),
    }


DISEASES: dict[str, tuple[str, Scalars]] = {
    "gold rises and falls": ("over-optimisation", _falling_gold()),
    "gold never rises": ("over-optimisation", _flat_gold()),
    "all good": (
        "groups without reward variance",
        {
            "frac_reward_zero_std": curve(lambda t: 0.9 * t, 0.02, 2),
            "frac_groups_all_high": curve(lambda t: 0.8 * t),
            "frac_groups_all_low": curve(lambda t: 0.1 * t),
        },
    ),
    "one component": (
        "a reward component dominates",
        {
            "rewards/style/variance_share": curve(lambda t: 0.99, 0.005, 11),
            "rewards/fact/variance_share": curve(lambda t: 0.01),
        },
    ),
    "one large advantage": ("large advantages", {"advantages/abs_max": curve(lambda t: 2.4) | {40: 25.0}}),
    "flips": ("advantages that change sign", {"adjustment/sign_flips": curve(lambda t: 0.2 + 0.3 * t, 0.03, 7)}),
    "longer": (
        "length follows reward",
        {
            "completions/mean_length": curve(lambda t: 14 + 8 * t, 0.5, 5),
            "completions/length_reward_correlation": curve(lambda t: 0.7, 0.1, 6),
        },
    ),
    "shorter": (
        "length follows reward",
        {"completions/length_reward_correlation": curve(lambda t: -0.7, 0.1, 6)},
    ),
    "cut off": ("completions cut off", {"completions/clipped_ratio": curve(lambda t: 0.1 + 0.8 * t, 0.05, 17)}),
    "entropy": ("entropy collapse", {"entropy": curve(lambda t: 2.6 * float(np.exp(-3 * t)), 0.02, 4)}),
    "kl": ("KL run-away", {"kl": curve(lambda t: 3 * t * t, 0.05, 3)}),
    "held-out kl": ("KL run-away", {"kl": {}, "eval/kl": curve(lambda t: 3 * t, 0.05, 16, EVALUATIONS)}),
    "clipped": ("clipped ratios", {"clip_ratio/region_mean": curve(lambda t: 0.7, 0.05, 18)}),
    "plateau": ("plateau", _plateau()),
}
"""What was planted -> its diagnosis, and the scalars that differ from those of a healthy run."""


def write_ill_run(folder: Path, disease: str | None = None, *, adjustment: str = INCREASE, seed: int = 1) -> Path:
    """A finished run of 60 steps; None is a healthy one."""
    changed = DISEASES[disease][1] if disease else {}
    write_events(folder, healthy() | dict(changed))
    write_status(folder, seed=seed, adjustment=adjustment, step=60, max_steps=60)
    return folder
