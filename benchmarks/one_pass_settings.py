"""Measure the settings of one-pass rewards: python benchmarks/one_pass_settings.py [--quick]; see README.md."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import one_pass_settings_results as results
import pandas as pd
import torch
from command import run_command
from numpy.random import Generator
from one_pass_settings_results import ACTIVE, DEPLOYMENT, GREEDY, ONE_PASS, PASSIVE, RANDOM, REGRET, TRUTH
from reporting import consoles, machine, output_path, save_picture, write_table
from torch import Tensor
from torch.nn.functional import normalize, softplus

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards import online
from grpovi_lightning.rewards.online.selection import Pairs

MARGIN = 2.0
"""Standard deviation of the reward differences of independent completions; the better then wins about 3 times in 4."""
NARROW = 0.1  # how far completions of a prompt whose completions are alike lie from what they share, as a part of it

Estimators = Mapping[str, Callable[[int], online.UncertainEstimator]]
ESTIMATORS: Estimators = {ONE_PASS: online.OnlineMirrorDescent, "MLE refit": online.MaximumLikelihood}
"""With their default settings: eta = 1 and lambda = 1."""
PASSIVE_ESTIMATORS = {**ESTIMATORS, **{f"{name}, 0.1": partial(make, lam=0.1) for name, make in ESTIMATORS.items()}}
"""With less regularisation too: what draws rarely seen arms towards 0 does a part of pessimism's work."""


Row = tuple[str, str, str, str, int, int, str, float]
"""One number, one line of the CSV, with the columns `results.COLUMNS`."""


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


QUICK = Sizes(8, 4, 4, 50, 2, active_rounds=8, passive_labels=24, deployment_rounds=40)


@dataclass(frozen=True)
class Regime:
    """How the features of completions lie."""

    name: str
    decay: float = 0.0  # coordinate k has scale k^-decay before features are brought to length 1
    alike: float = 0.0  # share of the prompts whose completions are nearly the same
    rare: float = 0.0  # share of the prompts that have the second half of the coordinates, and nothing of the first

    def completions(self, rng: Generator, n_prompts: int, group_size: int, dim: int) -> Tensor:
        """Return features [P, G, D] of length 1."""
        own = rng.standard_normal((n_prompts, group_size, dim))
        shared = rng.standard_normal((n_prompts, 1, dim))
        alike = rng.random((n_prompts, 1, 1)) < self.alike
        scales = np.arange(1, dim + 1) ** -self.decay
        if self.rare:
            scales = scales * ((np.arange(dim) >= dim // 2) == (rng.random((n_prompts, 1, 1)) < self.rare))
        return normalize(torch.from_numpy(np.where(alike, shared + NARROW * own, own) * scales), dim=2)

    def theta(self, rng: Generator, dim: int) -> Tensor:
        """Return [D], such that reward differences of independent completions have standard deviation `MARGIN`."""
        sample = replace(self, alike=0.0).completions(rng, 4_000, 1, dim).squeeze(1)
        direction = torch.from_numpy(rng.standard_normal(dim))
        return direction * (MARGIN / 2.0**0.5 / (sample @ direction).std())


ACTIVE_REGIMES = (Regime("even"), Regime("power law", decay=1.0), Regime("alike", alike=0.9), Regime("rare", rare=0.1))
ACTIVE_STRATEGIES: Mapping[str, online.PairSelection] = {
    RANDOM: online.RandomPairs(),
    "uncertain": online.UncertainPairs(),
    "best-second": online.BestAgainstSecond(),
    "best-worst": online.BestAgainstWorst(),
}
RECURRING_PROMPTS = 4
DEPLOYMENT_STRATEGIES: Mapping[str, online.PairSelection] = {
    RANDOM: online.RandomPairs(),
    "best-second": online.BestAgainstSecond(),
    **{f"optimistic {beta:g}": online.OptimisticPairs(beta) for beta in (0.1, 0.3, 1.0)},
}
PASSIVE_REGIMES: Mapping[str, float] = {"covered better": 1.0, "unrelated": 0.0, "covered worse": -1.0}
"""Regime -> standard deviations by which the reward of an arm falls from the most to the least covered one."""
COVERAGE = 0.6  # how often an arm is logged, as a part of how often the arm before it is
BETAS = (0.0, 0.3, 1.0, 3.0)


def label(pairs: Pairs, rewards: Tensor, uniforms: Tensor) -> Tensor:
    """Return Bradley-Terry labels [n] that do not depend on the strategy: a pair has one label, whoever asks.

    `rewards` [P, G] are the true ones; of `uniforms` [P, G, G] in [0, 1) the part above the diagonal is used.
    """
    first, second = torch.tensor(pairs.first), torch.tensor(pairs.second)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    margins = rewards[pairs.prompts, low] - rewards[pairs.prompts, high]
    wins = uniforms[pairs.prompts, low, high] < torch.sigmoid(margins)
    return (wins == (first < second)).double()


def held_out_scores(margins: Tensor, probabilities: Tensor) -> dict[str, float]:
    """Return accuracy and cross-entropy (nats) of predicted margins [n], in expectation over the labels."""
    right = torch.where(margins > 0.0, probabilities, 1.0 - probabilities)
    losses = softplus(margins) - probabilities * margins
    return {"accuracy": right.mean().item(), "cross-entropy": losses.mean().item()}


def active_rows(sizes: Sizes, seed: int) -> Iterator[Row]:
    """Yield each round: a pool of prompts, a batch of labels, one update, scores on pairs that nobody asks for."""
    for number, regime in enumerate(ACTIVE_REGIMES):
        rng = np.random.default_rng([1, number, seed])
        theta = regime.theta(rng, sizes.dim)
        test = regime.completions(rng, sizes.held_out, 2, sizes.dim)
        z = test[:, 0] - test[:, 1]
        probabilities = torch.sigmoid(z @ theta)
        shape = sizes.prompts, sizes.group_size
        pools = [regime.completions(rng, *shape, sizes.dim) for _ in range(sizes.active_rounds)]
        uniforms = [torch.from_numpy(rng.random((*shape, sizes.group_size))) for _ in pools]

        truth = held_out_scores(z @ theta, probabilities)
        yield from ((ACTIVE, regime.name, "", TRUTH, seed, 0, *score) for score in truth.items())
        for name, make in ESTIMATORS.items():
            for method, strategy in ACTIVE_STRATEGIES.items():
                estimator, chance = make(sizes.dim), np.random.default_rng([2, number, seed])
                for pool, noise in zip(pools, uniforms, strict=True):
                    pairs = strategy.select(pool, estimator, sizes.labels_per_round, chance)
                    estimator.update(pairs.differences(pool), label(pairs, pool @ theta, noise))
                    scores = held_out_scores(z @ estimator.theta, probabilities)
                    for score in scores.items():
                        yield ACTIVE, regime.name, name, method, seed, estimator.n_pairs, *score


def logged(sizes: Sizes, rng: Generator, contexts: Tensor) -> tuple[Tensor, Pairs]:
    """Return features [n, G, D] of arms in `contexts` [n, K], and for each two different arms, the first ones oftener.

    Arm a has K places of D = G K for itself: what is learned of one arm says nothing about another.
    """
    arms = np.arange(sizes.group_size)
    shares = COVERAGE**arms / (COVERAGE**arms).sum()
    drawn = [rng.choice(arms, 2, replace=False, p=shares).tolist() for _ in contexts]
    eye = torch.eye(sizes.group_size, dtype=torch.float64)
    features = torch.einsum("ab,nk->nabk", eye, contexts).flatten(2)
    return features, Pairs(list(range(len(drawn))), [first for first, _ in drawn], [second for _, second in drawn])


def passive_rows(sizes: Sizes, seed: int) -> Iterator[Row]:
    """Learn a fixed data set once; yield the true reward of what the greedy and the pessimistic policy choose."""
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
        yield PASSIVE, regime, "", TRUTH, seed, 0, "value", true.max(dim=1).values.mean().item()
        for name, make in PASSIVE_ESTIMATORS.items():
            estimator = make(sizes.dim)
            for batch in torch.arange(sizes.passive_labels).split(sizes.labels_per_round):
                estimator.update(z[batch], y[batch])
            for beta in BETAS:
                chosen = estimator.pessimistic(test, beta).argmax(dim=1, keepdim=True)
                value = true.gather(1, chosen).mean().item()
                policy = f"beta {beta:g}" if beta else GREEDY
                yield PASSIVE, regime, name, policy, seed, sizes.passive_labels, "value", value


def deployment_rows(sizes: Sizes, seed: int) -> Iterator[Row]:
    """Yield what two completions that are shown and compared fall short of the best, one prompt a round."""
    regime = Regime("")
    rounds = sizes.deployment_rounds
    at = sorted({*np.geomspace(max(1, rounds // 100), rounds, 20).round().astype(int).tolist(), rounds // 4, rounds})
    for number, name in enumerate(("fresh", "recurring")):
        rng = np.random.default_rng([4, number, seed])
        theta = regime.theta(rng, sizes.dim)
        n_prompts = RECURRING_PROMPTS if name == "recurring" else sizes.deployment_rounds
        prompts = regime.completions(rng, n_prompts, sizes.group_size, sizes.dim)
        uniforms = torch.from_numpy(rng.random((sizes.deployment_rounds, sizes.group_size, sizes.group_size)))
        rewards = prompts @ theta
        top = rewards.topk(2, dim=1).values
        shown = torch.arange(sizes.deployment_rounds) % n_prompts
        floor = ((top[:, 0] - top[:, 1]) / 2.0)[shown].cumsum(0)
        for t in at:
            yield DEPLOYMENT, name, "", TRUTH, seed, t, REGRET, floor[t - 1].item()
        for method, strategy in DEPLOYMENT_STRATEGIES.items():
            estimator, chance = ESTIMATORS[ONE_PASS](sizes.dim), np.random.default_rng([5, number, seed])
            regrets = []
            for t, prompt in enumerate(shown.tolist()):
                group = prompts[prompt : prompt + 1]
                pairs = strategy.select(group, estimator, 1, chance)
                y = label(pairs, rewards[prompt : prompt + 1], uniforms[t : t + 1])
                estimator.update(pairs.differences(group), y)
                pair = rewards[prompt, [*pairs.first, *pairs.second]]
                regrets.append(float(top[prompt, 0]) - (float(pair[0]) + float(pair[1])) / 2.0)
            total = np.cumsum(regrets)
            for t in at:
                yield DEPLOYMENT, name, ONE_PASS, method, seed, t, REGRET, float(total[t - 1])


def run(arguments: argparse.Namespace) -> None:
    """Run all seeds of all settings, print the tables, and write the CSV and the picture beside it."""
    out, progress = consoles()
    sizes, n_seeds = (QUICK, 3) if arguments.quick else (Sizes(), 20)
    torch.set_num_threads(1)  # the matrices are too small for more
    out.print(machine(1))
    rows: list[Row] = []
    for rows_of in (passive_rows, active_rows, deployment_rows):
        for seed in range(arguments.seeds or n_seeds):
            progress.print(f"{rows_of.__name__}: seed {seed}")
            rows += rows_of(sizes, seed)
    frame, path = pd.DataFrame(rows, columns=results.COLUMNS), output_path("one_pass_settings")
    found = results.Results(frame)
    results.print_tables(out, found)
    out.print(save_picture(results.settings_figure(found), path), write_table(frame, path), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(prog="one_pass_settings.py", description="The three settings of one-pass rewards.")
    parser.add_argument("--quick", action="store_true", help="small sizes and 3 seeds: a few seconds")
    parser.add_argument("--seeds", type=int, help="how many, from 0 on, at least 2 (default: 20)")
    return run_command(parser, run, argv, least={"seeds": 2}, refused=(UserError,))


if __name__ == "__main__":
    sys.exit(main())
