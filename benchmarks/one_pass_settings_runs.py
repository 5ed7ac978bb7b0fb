"""What one_pass_settings.py runs: synthetic rewards, the passive, the active and the deployment setting."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn.functional import normalize, softplus

from grpovi_lightning.rewards.online.estimator import UncertainEstimator
from grpovi_lightning.rewards.online.maximum_likelihood import MaximumLikelihood
from grpovi_lightning.rewards.online.mirror_descent import OnlineMirrorDescent
from grpovi_lightning.rewards.online.selection import (
    BestAgainstSecond,
    BestAgainstWorst,
    OptimisticPairs,
    Pairs,
    PairSelection,
    RandomPairs,
    UncertainPairs,
)

PASSIVE, ACTIVE, DEPLOYMENT = "passive", "active", "deployment"
TRUTH = "truth"
"""The method that knows the reward: what nobody can do better."""
RANDOM, UNCERTAIN, GREEDY = "random", "uncertain", "greedy"
REGRET, FIRST_REGRET = "regret", "regret of the first"
MARGIN = 2.0
"""Standard deviation of the reward differences of independent completions; the better then wins about 3 times in 4."""
NARROW = 0.1
"""How far completions of a prompt whose completions are alike lie from what they share, as a part of it."""

ONE_PASS, REFIT = "one pass", "MLE refit"
ESTIMATORS: Mapping[str, Callable[[int], UncertainEstimator]] = {
    ONE_PASS: OnlineMirrorDescent,
    REFIT: MaximumLikelihood,
}
"""With their default settings: eta = 1 and lambda = 1."""
PASSIVE_ESTIMATORS: Mapping[str, Callable[[int], UncertainEstimator]] = {
    **ESTIMATORS,
    "one pass, 0.1": partial(OnlineMirrorDescent, lam=0.1),
    "MLE refit, 0.1": partial(MaximumLikelihood, lam=0.1),
}
"""With less regularisation too: what draws rarely seen arms towards 0 does a part of pessimism's work."""


class Row(NamedTuple):
    """One number, one line of the CSV."""

    setting: str
    regime: str
    estimator: str
    method: str
    seed: int
    labels: int
    metric: str
    value: float


@dataclass(frozen=True)
class Sizes:
    """How much is run for each seed."""

    dim: int = 32
    group_size: int = 8
    prompts: int = 16
    held_out: int = 1_000
    labels_per_round: int = 8
    active_rounds: int = 40
    passive_labels: int = 256
    deployment_rounds: int = 1_000


QUICK = Sizes(dim=8, group_size=4, prompts=4, held_out=50, labels_per_round=2, active_rounds=8, passive_labels=24,
              deployment_rounds=40)  # fmt: skip


@dataclass(frozen=True)
class Regime:
    """How the features of completions lie.

    Attributes:
        name: for tables.
        decay: coordinate k has scale k^-decay before features are brought to length 1.
        alike: share of the prompts whose completions are nearly the same.
        rare: share of the prompts whose completions have the second half of the coordinates for themselves and nothing
            in the first. Where it is 0, all prompts have all coordinates.
    """

    name: str
    decay: float = 0.0
    alike: float = 0.0
    rare: float = 0.0

    def completions(self, rng: Generator, n_prompts: int, group_size: int, dim: int) -> Tensor:
        """Features [P, G, D] of length 1."""
        own = rng.standard_normal((n_prompts, group_size, dim))
        shared = rng.standard_normal((n_prompts, 1, dim))
        alike = rng.random((n_prompts, 1, 1)) < self.alike
        scales = np.arange(1, dim + 1) ** -self.decay
        if self.rare:
            scales = scales * ((np.arange(dim) >= dim // 2) == (rng.random((n_prompts, 1, 1)) < self.rare))
        return normalize(torch.from_numpy(np.where(alike, shared + NARROW * own, own) * scales), dim=2)

    def theta(self, rng: Generator, dim: int) -> Tensor:
        """[D], such that reward differences of independent completions have standard deviation `MARGIN`."""
        sample = replace(self, alike=0.0).completions(rng, 4_000, 1, dim).squeeze(1)
        direction = torch.from_numpy(rng.standard_normal(dim))
        return direction * (MARGIN / 2.0**0.5 / (sample @ direction).std())


ACTIVE_REGIMES = (
    Regime("even"),
    Regime("power law", decay=1.0),
    Regime("alike", alike=0.9),
    Regime("rare", rare=0.1),
)
ACTIVE_STRATEGIES: Mapping[str, PairSelection] = {
    RANDOM: RandomPairs(),
    UNCERTAIN: UncertainPairs(),
    "best-second": BestAgainstSecond(),
    "best-worst": BestAgainstWorst(),
}
FRESH, RECURRING = "fresh", "recurring"
DEPLOYMENT_REGIMES = (FRESH, RECURRING)
RECURRING_PROMPTS = 4
DEPLOYMENT_STRATEGIES: Mapping[str, PairSelection] = {
    RANDOM: RandomPairs(),
    "best-second": BestAgainstSecond(),
    "optimistic 0.1": OptimisticPairs(0.1),
    "optimistic 0.3": OptimisticPairs(0.3),
    "optimistic 1": OptimisticPairs(1.0),
}
PASSIVE_REGIMES: Mapping[str, float] = {"covered better": 1.0, "unrelated": 0.0, "covered worse": -1.0}
"""Regime -> standard deviations by which the reward of an arm falls from the most to the least covered one."""
COVERAGE = 0.6
"""How often an arm is logged, as a part of how often the arm before it is."""
BETAS = (0.0, 0.3, 1.0, 3.0)


def label(pairs: Pairs, rewards: Tensor, uniforms: Tensor) -> Tensor:
    """Bradley-Terry labels [n] that do not depend on the strategy: a pair has one label, whoever asks.

    Args:
        pairs: what is asked.
        rewards: [P, G], the true ones.
        uniforms: [P, G, G] in [0, 1), of which the part above the diagonal is used.
    """
    first, second = torch.tensor(pairs.first), torch.tensor(pairs.second)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    margins = rewards[pairs.prompts, low] - rewards[pairs.prompts, high]
    wins = uniforms[pairs.prompts, low, high] < torch.sigmoid(margins)
    return (wins == (first < second)).double()


def held_out_scores(margins: Tensor, probabilities: Tensor) -> dict[str, float]:
    """Accuracy and cross-entropy (nats) of predicted margins [n], in expectation over the labels."""
    right = torch.where(margins > 0.0, probabilities, 1.0 - probabilities)
    losses = softplus(margins) - probabilities * margins
    return {"accuracy": right.mean().item(), "cross-entropy": losses.mean().item()}


def active_rows(sizes: Sizes, seed: int) -> Iterator[Row]:
    """Each round: a pool of prompts, a batch of labels, one update, scores on pairs that nobody asks for."""
    for number, regime in enumerate(ACTIVE_REGIMES):
        rng = np.random.default_rng([1, number, seed])
        theta = regime.theta(rng, sizes.dim)
        test = regime.completions(rng, sizes.held_out, 2, sizes.dim)
        z = test[:, 0] - test[:, 1]
        probabilities = torch.sigmoid(z @ theta)
        shape = sizes.prompts, sizes.group_size
        pools = [regime.completions(rng, *shape, sizes.dim) for _ in range(sizes.active_rounds)]
        uniforms = [torch.from_numpy(rng.random((*shape, sizes.group_size))) for _ in pools]

        def rows(
            estimator: str, method: str, labels: int, scores: Mapping[str, float], regime: Regime = regime
        ) -> Iterator[Row]:
            for metric, value in scores.items():
                yield Row(ACTIVE, regime.name, estimator, method, seed, labels, metric, value)

        yield from rows("", TRUTH, 0, held_out_scores(z @ theta, probabilities))
        for name, make in ESTIMATORS.items():
            for method, strategy in ACTIVE_STRATEGIES.items():
                estimator, chance = make(sizes.dim), np.random.default_rng([2, number, seed])
                for pool, noise in zip(pools, uniforms, strict=True):
                    pairs = strategy.select(pool, estimator, sizes.labels_per_round, chance)
                    estimator.update(pairs.differences(pool), label(pairs, pool @ theta, noise))
                    scores = held_out_scores(z @ estimator.theta, probabilities)
                    yield from rows(name, method, estimator.n_pairs, scores)


def pessimistic(beta: float) -> str:
    """The name of the policy with this weight of the uncertainty."""
    return f"beta {beta:g}" if beta else GREEDY


def logged(sizes: Sizes, rng: Generator, contexts: Tensor) -> tuple[Tensor, Pairs]:
    """Features [n, G, D] of the arms in `contexts` [n, K], and for each two different arms, the first ones oftener.

    Arm a has the features (0, ..., context, ..., 0), its own K places of D = G K: what is learned of one arm says
    nothing about another.
    """
    arms = np.arange(sizes.group_size)
    shares = COVERAGE**arms / (COVERAGE**arms).sum()
    drawn = [rng.choice(arms, 2, replace=False, p=shares).tolist() for _ in contexts]
    eye = torch.eye(sizes.group_size, dtype=torch.float64)
    features = torch.einsum("ab,nk->nabk", eye, contexts).flatten(2)
    return features, Pairs(list(range(len(drawn))), [first for first, _ in drawn], [second for _, second in drawn])


def passive_rows(sizes: Sizes, seed: int) -> Iterator[Row]:
    """A fixed data set, learned once; then the true reward of what the greedy and the pessimistic policy choose."""
    width = sizes.dim // sizes.group_size
    for number, (regime, slope) in enumerate(PASSIVE_REGIMES.items()):
        rng = np.random.default_rng([3, number, seed])
        n = sizes.passive_labels + sizes.held_out
        contexts = torch.from_numpy(rng.standard_normal((n, width)) * np.arange(1, width + 1) ** -0.5)
        contexts[:, 0] = 1.0  # so that an arm can be better than another everywhere
        features, pairs = logged(sizes, rng, normalize(contexts, dim=1))
        theta = torch.from_numpy(rng.standard_normal((sizes.group_size, width)))
        theta[:, 0] += slope * torch.linspace(1.0, -1.0, sizes.group_size).double() / 2.0
        theta = theta.flatten() * MARGIN
        rewards = features @ theta
        uniforms = torch.from_numpy(rng.random((n, sizes.group_size, sizes.group_size)))
        z, y = pairs.differences(features), label(pairs, rewards, uniforms)
        test, true = features[sizes.passive_labels :], rewards[sizes.passive_labels :]
        best = true.max(dim=1).values.mean().item()
        yield Row(PASSIVE, regime, "", TRUTH, seed, 0, "value", best)
        for name, make in PASSIVE_ESTIMATORS.items():
            estimator = make(sizes.dim)
            learned = sizes.passive_labels
            for batch in torch.arange(learned).split(sizes.labels_per_round):
                estimator.update(z[batch], y[batch])
            for beta in BETAS:
                chosen = estimator.pessimistic(test, beta).argmax(dim=1, keepdim=True)
                value = true.gather(1, chosen).mean().item()
                yield Row(PASSIVE, regime, name, pessimistic(beta), seed, learned, "value", value)


def checkpoints(rounds: int) -> list[int]:
    """About 20 rounds at equal ratios, the quarter and the last among them."""
    spaced = np.geomspace(max(1, rounds // 100), rounds, 20).round().astype(int).tolist()
    return sorted({*spaced, rounds // 4, rounds})


def deployment_rows(sizes: Sizes, seed: int) -> Iterator[Row]:
    """One prompt a round, two of its completions are shown and compared; what their rewards fall short of the best."""
    regime = Regime("")
    at = checkpoints(sizes.deployment_rounds)
    for number, name in enumerate(DEPLOYMENT_REGIMES):
        rng = np.random.default_rng([4, number, seed])
        theta = regime.theta(rng, sizes.dim)
        n_prompts = RECURRING_PROMPTS if name == RECURRING else sizes.deployment_rounds
        prompts = regime.completions(rng, n_prompts, sizes.group_size, sizes.dim)
        uniforms = torch.from_numpy(rng.random((sizes.deployment_rounds, sizes.group_size, sizes.group_size)))
        rewards = prompts @ theta
        top = rewards.topk(2, dim=1).values
        shown = torch.arange(sizes.deployment_rounds) % n_prompts
        floor = ((top[:, 0] - top[:, 1]) / 2.0)[shown].cumsum(0)
        for t in at:
            yield Row(DEPLOYMENT, name, "", TRUTH, seed, t, REGRET, floor[t - 1].item())
        for method, strategy in DEPLOYMENT_STRATEGIES.items():
            estimator, chance = ESTIMATORS[ONE_PASS](sizes.dim), np.random.default_rng([5, number, seed])
            regrets: dict[str, list[float]] = {REGRET: [], FIRST_REGRET: []}
            for t, prompt in enumerate(shown.tolist()):
                group = prompts[prompt : prompt + 1]
                pairs = strategy.select(group, estimator, 1, chance)
                y = label(pairs, rewards[prompt : prompt + 1], uniforms[t : t + 1])
                estimator.update(pairs.differences(group), y)
                ((first,), (second,)) = pairs.first, pairs.second
                best, of_first, of_second = (float(r) for r in (top[prompt, 0], *rewards[prompt, [first, second]]))
                regrets[REGRET].append(best - (of_first + of_second) / 2.0)
                regrets[FIRST_REGRET].append(best - of_first)
            for metric, values in regrets.items():
                total = np.cumsum(values)
                for t in at:
                    yield Row(DEPLOYMENT, name, ONE_PASS, method, seed, t, metric, float(total[t - 1]))


SETTINGS: Mapping[str, Callable[[Sizes, int], Iterator[Row]]] = {
    PASSIVE: passive_rows,
    ACTIVE: active_rows,
    DEPLOYMENT: deployment_rows,
}
