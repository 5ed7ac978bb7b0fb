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


def exact_optimum(steps: list[int], weights: list[int], top: int, ties: str = "merge") -> list[Fraction | None]:
    """The same by exhaustive search in integers, fast enough for thousands of groups with weights of any size.

    Args:
        steps: rewards, counted in steps above the lower bound.
        weights: relative weights; 0 is a weight of zero.
        top: the upper bound in steps.
        ties: "merge" or "split".

    Returns:
        In the caller's order, the optimal rewards in steps; None for members of weight 0.
    """
    result: list[Fraction | None] = [None] * len(steps)
    if len(set(steps)) == 1:
        return [Fraction(step) for step in steps]
    atoms = _atoms([Fraction(step) for step in steps], [Fraction(weight) for weight in weights], ties)
    p = [sum(weights[i] for i in members) for _, members in atoms]
    above = [sum(p[:k]) for k in range(len(p) + 1)]
    spent = sum(weight * step for weight, step in zip(weights, steps, strict=True))
    best: tuple[int, int, int, int] | None = None  # numerator and denominator of the objective, k, last
    for k in range(len(p) + 1):
        for last in range(k, len(p) + 1):
            rest, block = spent - top * above[k], above[last] - above[k]
            if not 0 <= rest <= top * block:
                continue
            # sum p z^2 = top^2 above[k] + block (rest / block)^2
            value = (top**2 * above[k] * block + rest**2, block) if block else (top**2 * above[k], 1)
            if best is None or value[0] * best[1] > best[0] * value[1]:
                best = (*value, k, last)
    assert best is not None
    _, _, k, last = best
    for position, (_, members) in enumerate(atoms):
        for i in members:
            alpha = Fraction(spent - top * above[k], above[last] - above[k]) if k <= position < last else None
            result[i] = alpha if alpha is not None else Fraction(top if position < k else 0)
    return result
