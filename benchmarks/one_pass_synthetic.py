"""What one_pass.py measures: comparisons of a known linear reward, and estimators that learn it round by round."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from grpovi_lightning.rewards.online import (
    ConstantRate,
    ImplicitMirrorDescent,
    InverseSquareRootRate,
    MaximumLikelihood,
    OnlineMirrorDescent,
    PreferenceEstimator,
    StochasticGradientDescent,
)

ONE_PASS, IMPLICIT = "one-pass OMD", "implicit OMD"
WARM, COLD, LOOSE = "MLE refit, warm", "MLE refit, cold", "MLE refit, loose"
CONSTANT, FALLING = "SGD, constant", "SGD, 1/sqrt(t)"
LAMS = (0.1, 1.0, 10.0)
DEFAULT = "lam 1"
"""The setting of the arms with a lambda that stands for them where one must."""
TIGHT, LOOSEST = 1e-9, 1e-4
"""Tolerances of the refits: of all but one; and the loosest power of ten that changes the held-out cross-entropy after
all rounds by less than 1e-4. The loose refit begins at the last theta."""
CONSTANT_RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
FALLING_RATES = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
ROUND = 32
"""Pairs a round, in all arms."""
THETA_NORM = 23.0
"""With it the reward's own cross-entropy on unseen pairs, the lowest possible, is about 0.53."""
WINDOW = 10
"""Rounds whose median is the time of a round at t: the last ones that end at t or before."""
EARLY = 400
"""Pairs after which the time of a round is compared with that at the end."""


class Sizes(NamedTuple):
    """How much is measured."""

    dim: int = 384
    pairs: int = 4_000
    held_out: int = 5_000
    n_seeds: int = 5


QUICK = Sizes(dim=12, pairs=480, held_out=300, n_seeds=2)


class Row(NamedTuple):
    """One round of one arm, one line of the CSV; README.md says what the columns mean."""

    arm: str
    setting: str
    seed: int
    samples: int
    seconds: float
    state_bytes: int
    cross_entropy: float
    accuracy: float


class Arm(NamedTuple):
    """A method with its setting, and how to make its estimator for D features."""

    name: str
    setting: str
    make: Callable[[int], PreferenceEstimator]


@dataclass(frozen=True)
class Problem:
    """Comparisons to learn from and held-out ones.

    Attributes:
        z: [T, D] feature differences.
        y: [T] labels.
        held_out_z: [N, D].
        held_out_y: [N].
        theta: [D], the reward that labelled them.
    """

    z: Tensor
    y: Tensor
    held_out_z: Tensor
    held_out_y: Tensor
    theta: Tensor

    def score(self, theta: Tensor) -> tuple[float, float]:
        """Cross-entropy in nats, and accuracy, on the held-out pairs."""
        margins = self.held_out_z @ theta
        loss = binary_cross_entropy_with_logits(margins, self.held_out_y)
        return loss.item(), ((margins > 0) == (self.held_out_y > 0.5)).double().mean().item()


@dataclass(frozen=True)
class Track:
    """All rounds of an arm, each [n seeds, rounds]; `samples` [rounds] is how many pairs it had learned from."""

    arm: Arm
    samples: NDArray
    seconds: NDArray
    state_bytes: NDArray
    cross_entropy: NDArray
    accuracy: NDArray

    def round_seconds(self, samples: int) -> NDArray:
        """The median over the `WINDOW` rounds up to `samples`: [n seeds]."""
        end = int((self.samples <= samples).sum())
        return np.median(self.seconds[:, max(end - WINDOW, 0) : end], axis=1)

    def rows(self, first_seed: int) -> Iterable[Row]:
        """One row a seed and round."""
        parts = (self.seconds, self.state_bytes, self.cross_entropy, self.accuracy)
        for i in range(len(self.seconds)):
            for j, samples in enumerate(self.samples.tolist()):
                yield Row(self.arm.name, self.arm.setting, first_seed + i, samples, *(part[i, j] for part in parts))


def problem(sizes: Sizes, seed: int) -> Problem:
    """Comparisons of pairs of unit features under a power law, the same for one seed.

    A feature vector is x / ||x||, x_j normal with mean 0 and variance 1/j; a pair is two independent ones; theta is
    uniform on the sphere of radius `THETA_NORM`; a label is 1 with probability sigmoid(z' theta).
    """
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.arange(1, sizes.dim + 1, dtype=torch.float64) ** -0.5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def features(n: int) -> Tensor:
        return torch.nn.functional.normalize(normal(n, sizes.dim) * deviations)

    n = sizes.pairs + sizes.held_out
    z = features(n) - features(n)
    theta = THETA_NORM * torch.nn.functional.normalize(normal(sizes.dim), dim=0)
    y = (torch.rand(n, generator=generator, dtype=torch.float64) < torch.sigmoid(z @ theta)).double()
    t = sizes.pairs
    return Problem(z[:t].clone(), y[:t].clone(), z[t:].clone(), y[t:].clone(), theta)


def arms() -> list[Arm]:
    """Every method with every setting of its grid."""
    refit = partial(MaximumLikelihood, tolerance=TIGHT)
    kinds = {ONE_PASS: OnlineMirrorDescent, IMPLICIT: ImplicitMirrorDescent, WARM: refit}
    found = [Arm(name, f"lam {lam:g}", partial(kind, lam=lam)) for name, kind in kinds.items() for lam in LAMS]
    found.append(Arm(COLD, DEFAULT, partial(refit, lam=1.0, warm_start=False)))
    found.append(Arm(LOOSE, DEFAULT, partial(MaximumLikelihood, lam=1.0, tolerance=LOOSEST)))
    for name, kind, grid in (
        (CONSTANT, ConstantRate, CONSTANT_RATES),
        (FALLING, InverseSquareRootRate, FALLING_RATES),
    ):
        found += [Arm(name, f"rate {rate:g}", partial(StochasticGradientDescent, rate=kind(rate))) for rate in grid]
    return found


def learn(arm: Arm, task: Problem) -> list[tuple[int, float, int, float, float]]:
    """Learns all pairs, `ROUND` at a time: (samples, seconds, bytes of state, cross-entropy, accuracy) of each round.

    The seconds are the processor's, for the update alone: with one thread those of an idle machine, whatever else runs.
    """
    warm_up = arm.make(task.z.shape[1])
    warm_up.update(task.z[:ROUND], task.y[:ROUND])
    estimator = arm.make(task.z.shape[1])
    rounds = []
    for z, y in zip(task.z.split(ROUND), task.y.split(ROUND), strict=True):
        start = time.process_time()
        estimator.update(z, y)
        seconds = time.process_time() - start
        rounds.append((estimator.n_pairs, seconds, estimator.state_bytes, *task.score(estimator.theta)))
    return rounds


def measure(problems: Sequence[Problem], say: Callable[[str], None]) -> list[Track]:
    """All arms on all problems; the arms in turn, so that a change of the machine's load meets all of them."""
    grid = arms()
    found: dict[tuple[str, str], list[NDArray]] = {(arm.name, arm.setting): [] for arm in grid}
    for i, task in enumerate(problems):
        say(f"problem {i + 1} of {len(problems)}: {len(grid)} arms")
        for arm in grid:
            found[arm.name, arm.setting].append(np.array(learn(arm, task)).T)
    tracks = []
    for arm in grid:
        samples, *parts = np.stack(found[arm.name, arm.setting], axis=1)
        tracks.append(Track(arm, samples[0].astype(int), *parts))
    return tracks


def of(tracks: Iterable[Track], name: str) -> list[Track]:
    """The tracks of a method."""
    return [track for track in tracks if track.arm.name == name]


def best(tracks: Iterable[Track], name: str) -> Track:
    """The setting with the lowest mean held-out cross-entropy at the end: chosen on the pairs it is judged by."""
    return min(of(tracks, name), key=lambda track: track.cross_entropy[:, -1].mean())


def default(tracks: Iterable[Track], name: str) -> Track:
    """The track of a method with a lambda under the setting that stands for it."""
    return next(track for track in of(tracks, name) if track.arm.setting == DEFAULT)


def spread(values: NDArray, digits: int) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{values.mean():.{digits}f} ± {statistics.stdev(values.tolist()):.{digits}f}"
