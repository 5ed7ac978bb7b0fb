"""The variance increase in exact rational arithmetic: every extreme point of Lemma 2 of arXiv 2505.23247 is tried."""

from fractions import Fraction
from itertools import groupby

Atom = tuple[Fraction, list[int]]  # a reward and the members that have it


def exact_adjustment(rewards, weights, lower, upper, ties="merge") -> list[Fraction | None]:
    """Best extreme point of one group, in the caller's order; None for members of weight 0, which no optimum binds.

    An extreme point has some of the largest rewards at `upper`, then some at one value alpha, the rest at `lower`.
    """
    rewards = [Fraction(reward) for reward in rewards]
    weights = [Fraction(weight) for weight in weights]
    lower, upper = Fraction(lower), Fraction(upper)
    result: list[Fraction | None] = [None] * len(rewards)
    if len(set(rewards)) == 1:
        return list(rewards)
    atoms = _atoms(rewards, weights, ties)
    p = [sum(weights[i] for i in members) for _, members in atoms]
    spent = sum(weight * reward for weight, (reward, _) in zip(p, atoms, strict=True))
    best = max(_extreme_points(p, spent, lower, upper), key=lambda z: sum(w * v * v for w, v in zip(p, z, strict=True)))
    for value, (_, members) in zip(best, atoms, strict=True):
        for i in members:
            result[i] = value
    return result


def _atoms(rewards: list[Fraction], weights: list[Fraction], ties: str) -> list[Atom]:
    kept = sorted((i for i in range(len(rewards)) if weights[i] > 0), key=lambda i: -rewards[i])
    if ties == "split":
        return [(rewards[i], [i]) for i in kept]
    return [(reward, list(members)) for reward, members in groupby(kept, key=lambda i: rewards[i])]


def _extreme_points(p, spent, lower, upper):
    n = len(p)
    for top in range(n + 1):
        for last in range(top, n + 1):
            rest = spent - upper * sum(p[:top]) - lower * sum(p[last:])
            if top == last:
                if rest == 0:
                    yield [upper] * top + [lower] * (n - top)
                continue
            alpha = rest / sum(p[top:last])
            if lower <= alpha <= upper:
                yield [upper] * top + [alpha] * (last - top) + [lower] * (n - last)
