"""Reward curves for calibration.py: their noise, estimated from recorded runs, and studies simulated with it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.optimize import least_squares

from analysis.curves import Curve, Curves
from analysis.settings import GOLD_MEAN

ARM, BASELINE = "arm", "baseline"
LARGEST_FACTOR = 20.0
"""Fitted rise times lie within this factor of the run's length, fitted rises of the runs' mean one."""


@dataclass(frozen=True)
class Noise:
    """Curves start + rise * (1 - exp(-step / rise_steps)), and how they vary from seed to seed and from run to run.

    `shared` is what the two runs of a seed have in common (initial policy, prompts, random numbers), `own` what each
    has for itself. All standard deviations are of normal distributions.

    Attributes:
        start: Mean value at step 0, in units of the metric.
        start_sd: Over seeds; the two runs of a seed start at the same value.
        rise: Mean of (value after endless training - start).
        rise_shared_sd: Over seeds.
        rise_own_sd: Over runs of a seed.
        rise_steps: Geometric mean of the time constant, policy updates.
        log_steps_shared_sd: Of its natural logarithm, over seeds.
        log_steps_own_sd: Of its natural logarithm, over runs of a seed.
        evaluation_sd: Of a single evaluation after step 0, about the curve.
    """

    start: float
    start_sd: float
    rise: float
    rise_shared_sd: float
    rise_own_sd: float
    rise_steps: float
    log_steps_shared_sd: float
    log_steps_own_sd: float
    evaluation_sd: float


def estimate_noise(curves: Curves) -> Noise:
    """Return the noise of recorded runs by moments: of each run's fitted curve, between seeds and within them.

    What the arms differ in on average is taken away first, so that it is no noise. What a fit cannot tell apart counts
    as the runs' own, so noise of single runs is rather over- than understated.

    Args:
        curves: arm -> seed -> curve; the seeds that all arms have count, at least two, of at least two arms.
    """
    seeds = sorted(set.intersection(*(set(of) for of in curves.values())))
    assert len(curves) > 1 and len(seeds) > 1, "shared noise shows only between arms and over seeds"
    runs = [[curves[arm][seed] for seed in seeds] for arm in curves]
    starts = np.array([[curve.first for curve in of] for of in runs])
    typical = float(np.mean([curve.final - curve.first for of in runs for curve in of]))
    fits = np.array([[_fit(curve, typical) for curve in of] for of in runs])  # [arms, seeds, (rise, log steps, sd)]
    rise_shared, rise_own = _components(fits[..., 0])
    steps_shared, steps_own = _components(fits[..., 1])
    return Noise(
        start=float(starts.mean()),
        start_sd=float(starts.mean(axis=0).std(ddof=1)),
        rise=float(fits[..., 0].mean()),
        rise_shared_sd=rise_shared,
        rise_own_sd=rise_own,
        rise_steps=float(np.exp(fits[..., 1].mean())),
        log_steps_shared_sd=steps_shared,
        log_steps_own_sd=steps_own,
        evaluation_sd=float(np.sqrt(np.mean(fits[..., 2] ** 2))),
    )


def _fit(curve: Curve, typical: float) -> tuple[float, float, float]:
    """Return rise, log of the time constant, and standard deviation about the fit of one run, from its own start."""
    steps, values, length = curve.steps[1:], curve.values[1:] - curve.first, curve.steps[-1]

    def misfit(parameters: np.ndarray) -> np.ndarray:
        return parameters[0] * -np.expm1(-steps / np.exp(parameters[1])) - values

    bounds = (
        (-LARGEST_FACTOR * abs(typical), np.log(length / LARGEST_FACTOR)),
        (
            LARGEST_FACTOR * abs(typical),
            np.log(length),
        ),
    )
    found = least_squares(misfit, (typical, np.log(length / 3)), bounds=bounds, x_scale=(abs(typical), 1.0))
    return float(found.x[0]), float(found.x[1]), float(np.sqrt(2 * found.cost / max(1, len(steps) - 2)))


def _components(values: np.ndarray) -> tuple[float, float]:
    """Return the standard deviations between seeds and within them of [arms, seeds]; a negative variance is 0."""
    centred = values - values.mean(axis=1, keepdims=True)
    n_arms = len(values)
    covariances = np.cov(centred)  # over seeds, between arms
    shared = (covariances.sum() - np.trace(covariances)) / (n_arms * (n_arms - 1))
    total = np.trace(covariances) / n_arms
    shared = min(max(shared, 0.0), total)
    return float(np.sqrt(shared)), float(np.sqrt(total - shared))


@dataclass(frozen=True)
class Study:
    """Runs of two arms that differ in speed alone.

    Attributes:
        steps: [N], of the evaluations.
        values: [2, n seeds, N], of the arm and of its baseline, as an evaluation measures them.
        expected: The same without the noise of evaluations.
    """

    steps: np.ndarray
    values: np.ndarray
    expected: np.ndarray

    def table(self, number: int) -> pd.DataFrame:
        """Return the runs as `analysis.load_runs` returns them, of the arms `arm <number>` and `baseline <number>`."""
        _, n_seeds, n_steps = self.values.shape
        names = [f"{arm} {number}" for arm in (ARM, BASELINE)]
        arms, seeds, steps = np.meshgrid(names, np.arange(1, n_seeds + 1), self.steps, indexing="ij")
        runs = [f"{arm}/seed_{seed}" for arm in names for seed in range(1, n_seeds + 1)]
        table = pd.DataFrame({"arm": arms.ravel(), "seed": seeds.ravel(), "run": np.repeat(runs, n_steps)})
        table = table.assign(metric=GOLD_MEAN, step=steps.ravel(), value=self.values.ravel(), wall_time=0.0)
        return table.astype({"seed": "Int64", "step": "int64"})

    def curves(self) -> Mapping[str, Mapping[int, Curve]]:
        """Return the curves: arm -> seed -> curve."""
        return {
            arm: {seed: Curve(self.steps, values) for seed, values in enumerate(of, start=1)}
            for arm, of in zip((ARM, BASELINE), self.values, strict=True)
        }


def simulate(noise: Noise, steps: np.ndarray, n_seeds: int, speedup: float, rng: Generator) -> Study:
    """Return a study in which the arm needs 1 / `speedup` of its baseline's steps to any height, but for the noise."""
    shape = (2, n_seeds, 1)
    start = noise.start + noise.start_sd * rng.standard_normal((1, n_seeds, 1))
    rise = noise.rise + noise.rise_shared_sd * rng.standard_normal((1, n_seeds, 1))
    rise = rise + noise.rise_own_sd * rng.standard_normal(shape)
    log_steps = np.log(noise.rise_steps) + noise.log_steps_shared_sd * rng.standard_normal((1, n_seeds, 1))
    log_steps = log_steps + noise.log_steps_own_sd * rng.standard_normal(shape)
    log_steps = log_steps - np.log(speedup) * np.array([1.0, 0.0])[:, None, None]
    expected = start + rise * -np.expm1(-steps / np.exp(log_steps))
    measured = expected + noise.evaluation_sd * rng.standard_normal(expected.shape) * (steps > 0)
    return Study(steps, measured, expected)
