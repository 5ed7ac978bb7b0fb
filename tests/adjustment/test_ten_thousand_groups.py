"""Ten thousand random groups against exhaustive search in exact arithmetic."""

import random
from decimal import Context, Decimal
from fractions import Fraction

import pytest
import torch
from helpers.exact_adjustment import exact_optimum

from grpovi_lightning.adjustment import increase_variance

N_GROUPS = 10_000
STEPS = 2**20
"""Steps of the range in which rewards are drawn, so that they are exact in float64."""
BITS = 3200
"""Of the integers that stand for weights: exp(-2000) is 2^-2885, so it keeps some 300 of them."""
CONTEXT = Context(prec=80)
BOUNDS = [(0.0, 1.0), (0.0, 4.0), (-1.0, 3.0), (-7.0, -5.0)]


def random_group(rng: random.Random, size: int) -> tuple[list[int], list[float]]:
    """(rewards in steps, log weights), with ties, rewards at the bounds and weights of zero."""
    steps: list[int] = []
    for _ in range(size):
        kind = rng.random()
        if kind < 0.2:
            steps.append(rng.choice([0, STEPS]))
        elif kind < 0.4 and steps:
            steps.append(rng.choice(steps))
        else:
            steps.append(rng.randint(0, STEPS))
    depth = rng.choice([0.0, 1.0, 40.0, 2000.0])
    logs = [-depth * rng.random() for _ in range(size)]
    zero = rng.random() < 0.3
    logs = [-float("inf") if zero and rng.random() < 0.3 else log for log in logs]
    if max(logs) == -float("inf"):
        logs[rng.randrange(size)] = 0.0
    return steps, logs


def integer_weight(log: float) -> int:
    return 0 if log == -float("inf") else int(CONTEXT.multiply(CONTEXT.exp(Decimal(log)), Decimal(2**BITS)))


@pytest.mark.slow
@pytest.mark.parametrize("ties", ["merge", "split"])
def test_ten_thousand_groups_are_the_exact_solution_to_1e_minus_9(ties):
    rng = random.Random(2505)
    by_size: dict[int, list[tuple[list[int], list[float], float, float]]] = {}
    for _ in range(N_GROUPS):
        size = rng.randint(1, 12)
        by_size.setdefault(size, []).append((*random_group(rng, size), *rng.choice(BOUNDS)))

    checked = 0
    for groups in by_size.values():
        lower, upper = (torch.tensor([[group[i]] for group in groups], dtype=torch.float64) for i in (2, 3))
        steps = torch.tensor([group[0] for group in groups], dtype=torch.float64)
        log_weights = torch.tensor([group[1] for group in groups], dtype=torch.float64)
        rewards = lower + (upper - lower) * (steps / STEPS)
        found = increase_variance(rewards, log_weights, lower=lower, upper=upper, ties=ties).tolist()
        for row, (group_steps, logs, low, high) in zip(found, groups, strict=True):
            weights = [integer_weight(log) for log in logs]
            exact = exact_optimum(group_steps, weights, STEPS, ties)
            assert_as_exact(row, exact, weights, low, high)
            checked += 1
    assert checked == N_GROUPS


def assert_as_exact(row: list[float], exact: list[Fraction | None], weights: list[int], low: float, high: float):
    """Each value, and the objective, to 1e-9 of itself."""
    span = Fraction(high - low)
    objective, optimum = Fraction(0), Fraction(0)
    for value, steps, weight in zip(row, exact, weights, strict=True):
        if steps is None:  # nothing but the order binds a completion of weight 0
            assert low <= value <= high
            continue
        expected = Fraction(low) + span * steps / STEPS
        assert abs(Fraction(value) - expected) <= Fraction(1e-9) * abs(expected), (value, float(expected), row)
        objective += weight * (Fraction(value) - Fraction(low)) ** 2
        optimum += weight * (expected - Fraction(low)) ** 2
    assert abs(objective - optimum) <= Fraction(1e-9) * optimum
