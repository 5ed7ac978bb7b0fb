"""The theorems of docs/adjustment.md on random groups, in exact arithmetic; and how exact floating point is."""

import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from helpers.exact_adjustment import exact_adjustment

from grpovi_lightning.adjustment import increase_variance

# Rewards are rescaled to [0, 1] and sorted; weights are positive and sum to 1.


def random_groups(count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        n = rng.randint(2, 7)
        s = sorted((Fraction(rng.randint(0, 24), 24) for _ in range(n)), reverse=True)
        w = [Fraction(rng.choice([1, 2, 3, 7, 500])) for _ in range(n)]
        if len(set(s)) > 1:
            yield s, [weight / sum(w) for weight in w], rng


def mean(p, values):
    return sum(weight * value for weight, value in zip(p, values, strict=True))


def fill(s, p):
    """The theorem's f, from the order and the mean alone."""
    left, f = mean(p, s), []
    for weight in p:
        f.append(min(left / weight, Fraction(1)))
        left -= weight * f[-1]
    return f


def test_the_theorem_gives_the_best_extreme_point_and_the_identity_says_by_how_much():
    for s, p, rng in random_groups(400):
        f, mu = fill(s, p), mean(p, s)
        assert f == exact_adjustment(s, p, 0, 1, "split")
        inside = [k for k, value in enumerate(f) if 0 < value < 1]
        assert len(inside) <= 1
        missing = sum(p[k] * f[k] * (1 - f[k]) for k in inside)
        assert mean(p, [value**2 for value in f]) - mu**2 == mu * (1 - mu) - missing

        # A feasible g: between the rewards, the constant at the mean and f.
        u, v = Fraction(rng.randint(0, 8), 8), Fraction(rng.randint(0, 8), 8)
        g = [u * a + (1 - u) * (v * mu + (1 - v) * b) for a, b in zip(s, f, strict=True)]
        behind = [mean(p[: i + 1], f[: i + 1]) - mean(p[: i + 1], g[: i + 1]) for i in range(len(s))]
        steps = sum((a - b) * d for (a, b), d in zip(pairwise(g), behind, strict=False))
        assert min(behind) >= 0 and behind[-1] == 0
        shortfall = mean(p, [a * a for a in f]) - mean(p, [b * b for b in g])
        assert shortfall == mean(p, [(a - b) ** 2 for a, b in zip(f, g, strict=True)]) + 2 * steps
        # Not only for squares: the mean absolute deviation is largest, too.
        assert mean(p, [abs(a - mu) for a in f]) >= mean(p, [abs(b - mu) for b in g])


def test_the_scan_ends_in_the_closed_form_whichever_feasible_move_it_takes():
    for s, p, rng in random_groups(400, seed=1):
        above = [sum(p[:k], Fraction(0)) for k in range(len(p) + 1)]
        mu, k, last = mean(p, s), 0, len(p)
        while True:
            moves = [(k + 1, last), (k, last - 1)]
            moves = [(a, b) for a, b in moves if a <= b and above[a] <= mu <= above[b]]
            if not moves:
                break
            k, last = rng.choice(moves)
        block = [(mu - above[k]) / p[k]] if last == k + 1 else []
        assert [Fraction(1)] * k + block + [Fraction(0)] * (len(p) - last) == fill(s, p)


def test_one_completion_that_takes_all_cuts_the_group_at_its_own_reward():
    cut = 0
    for s, p, rng in random_groups(400, seed=2):
        d = rng.randrange(len(s))
        p = [weight * (1000 if i == d else 1) for i, weight in enumerate(p)]
        p = [weight / sum(p) for weight in p]
        above, below = sum(p[:d]), sum(p[d + 1 :])
        if above <= p[d] * s[d] and below <= p[d] * (1 - s[d]):
            f = fill(s, p)
            assert f[:d] == [1] * d and f[d + 1 :] == [0] * (len(s) - d - 1)
            assert abs(f[d] - s[d]) <= max(above, below) / p[d]
            cut += 1
    assert cut > 100


def test_one_group_raises_the_variance_over_all_responses_by_what_the_page_says():
    for s, p, rng in random_groups(50, seed=3):
        share = Fraction(1, rng.randint(2, 1000))  # of the group in the response space; the others keep their rewards
        others = [Fraction(rng.randint(0, 24), 24) for _ in range(5)]
        space = [share * weight for weight in p] + [(1 - share) / 5] * 5

        def variance(rewards, space=space, others=others):
            return mean(space, [r * r for r in rewards + others]) - mean(space, rewards + others) ** 2

        f = fill(s, p)
        rise = variance(f) - variance(s)
        assert rise == share * (mean(p, [a * a for a in f]) - mean(p, [a * a for a in s]))
        assert 0 <= rise <= share / 4


@pytest.mark.parametrize("deepest", [1, 40, 400, 2900])
def test_values_and_mean_are_as_exact_as_section_3_says(deepest):
    rng = random.Random(deepest)
    for _ in range(100):
        rewards = [rng.random() for _ in range(rng.randint(2, 8))]
        exponents = [rng.randint(0, deepest) for _ in rewards]
        weights, logs = [2 ** (deepest - e) for e in exponents], [-math.log(2) * e for e in exponents]
        total, order = sum(weights), sorted(range(len(rewards)), key=lambda i: -rewards[i])
        exact = exact_adjustment(rewards, weights, 0, 1)
        group, log_weights = torch.tensor([[rewards], [logs]], dtype=torch.float64)
        found = increase_variance(group, log_weights, lower=0.0, upper=1.0)[0].tolist()

        normalised = [math.log(total) - math.log(weight) for weight in weights]
        delta = Fraction(2) ** -52 * Fraction(8 + max(map(abs, [*logs, *normalised])))
        below = Fraction(0)
        for i in reversed(order):
            below += weights[i] * Fraction(rewards[i])
            assert abs(Fraction(found[i]) - exact[i]) <= delta * (1 + below / weights[i])
        spent = sum(weight * Fraction(value) for weight, value in zip(weights, found, strict=True))
        assert abs(spent - below) <= delta * below
