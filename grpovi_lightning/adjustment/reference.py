"""The paper's Algorithms 1 and 2 word for word, in NumPy: slow and readable, to test the closed form against."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def enumeration_search(rewards: ArrayLike, weights: ArrayLike, lower: float, upper: float) -> tuple[NDArray, float]:
    """Return the best of all O(n^2) feasible extreme points: Algorithm 1 of arXiv 2505.23247.

    An extreme point has the k largest rewards at `upper`, the next l - k at one value alpha, the rest at `lower`.

    >>> adjusted, objective = enumeration_search([0.75, 0.5, 0.25], [1.0, 1.0, 2.0], lower=0.0, upper=1.0)
    >>> adjusted.tolist(), objective  # 1/4 * 1 + 1/4 * 0.75^2
    ([1.0, 0.75, 0.0], 0.390625)

    Args:
        rewards: [n], within [lower, upper].
        weights: [n], positive; normalised here.
        lower: the bound m.
        upper: the bound M.

    Returns:
        (adjusted [n] in the caller's order, objective sum p_i z_i^2).
    """
    r, p, order = _sorted(rewards, weights)
    best, best_value = r, -np.inf
    for k in range(len(r) + 1):
        for last in range(k, len(r) + 1):
            point = _extreme_point(r, p, k, last, lower, upper)
            if point is not None and p @ point**2 > best_value:
                best, best_value = point, float(p @ point**2)
    return _unsorted(best, order), best_value


def one_pass_search(rewards: ArrayLike, weights: ArrayLike, lower: float, upper: float) -> tuple[NDArray, float]:
    """Shrink one middle block from its top or bottom while a move is feasible: Algorithm 2 of arXiv 2505.23247.

    Each feasible move raises the objective (Lemma 5); of two the better is taken. Arguments and result are those of
    `enumeration_search`.

    >>> adjusted, objective = one_pass_search([0.75, 0.5, 0.25], [1.0, 1.0, 2.0], lower=0.0, upper=1.0)
    >>> adjusted.tolist(), objective
    ([1.0, 0.75, 0.0], 0.390625)
    """
    r, p, order = _sorted(rewards, weights)
    k, last = 0, len(r)
    best = _extreme_point(r, p, k, last, lower, upper)
    assert best is not None, "the constant at the mean is always feasible"
    while True:
        moves = [(k + 1, last), (k, last - 1)]
        found = [
            (float(p @ point**2), move, point)
            for move in moves
            if move[0] <= move[1] and (point := _extreme_point(r, p, *move, lower, upper)) is not None
        ]
        if not found:
            return _unsorted(best, order), float(p @ best**2)
        _, (k, last), best = max(found, key=lambda item: item[0])


def _extreme_point(r: NDArray, p: NDArray, k: int, last: int, lower: float, upper: float) -> NDArray | None:
    """Return the point with k entries at upper, those up to `last` at alpha, the rest at lower; None if infeasible."""
    rest = p @ r - upper * p[:k].sum() - lower * p[last:].sum()
    tolerance = 1e-12 * max(abs(lower), abs(upper), 1.0)
    point = np.concatenate([np.full(k, upper), np.zeros(last - k), np.full(len(r) - last, lower)])
    if k == last:
        return point if abs(rest) <= tolerance else None
    alpha = rest / p[k:last].sum()
    if not lower - tolerance <= alpha <= upper + tolerance:
        return None
    point[k:last] = np.clip(alpha, lower, upper)
    return point


def _sorted(rewards: ArrayLike, weights: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    r, p = np.asarray(rewards, dtype=float), np.asarray(weights, dtype=float)
    order = np.argsort(-r, kind="stable")
    return r[order], p[order] / p.sum(), order


def _unsorted(values: NDArray, order: NDArray) -> NDArray:
    result = np.empty_like(values)
    result[order] = values
    return result
