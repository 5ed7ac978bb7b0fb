"""The metric at equal cost: whether a method that saves tokens or time is ahead after the same amount of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.claims import Claim, corrected
from analysis.curves import Curve, Curves, common_span
from analysis.statistics import estimate_mean

Pair = tuple[str, str, Sequence[int]]
"""(arm, baseline, seeds that both have)"""


@dataclass(frozen=True)
class EqualCost:
    """The difference between an arm and its baseline in the mean of the metric over equal amounts of a cost.

    Per seed, both curves are drawn over what they had cost so far instead of over steps. Their mean heights are taken
    from the larger of the two first amounts to the smaller of the two last ones. Differences are of a pair of runs, arm
    minus baseline.

    Attributes:
        seeds: Seeds that count in at least one of them.
        tokens: Over equally many completion tokens sampled for training, those of replaced groups included.
        seconds: Over equal seconds of training, without evaluations: as the machine was in those runs.
    """

    arm: str
    baseline: str
    seeds: tuple[int, ...]
    tokens: Claim
    seconds: Claim


def over_cost(metric: Curve, cost: Curve) -> Curve | None:
    """Return a metric over what it had cost; None where the cost was not measured beside it, or does not rise.

    >>> steps = np.array([0.0, 10.0, 20.0])
    >>> over_cost(Curve(steps, np.array([1.0, 2.0, 3.0])), Curve(steps, np.array([0.0, 5.0, 6.0])))
    Curve(steps=array([0., 5., 6.]), values=array([1., 2., 3.]))
    """
    amounts = np.array([cost.at(step) for step in metric.steps])
    return Curve(amounts, metric.values) if (np.diff(amounts) > 0).all() and not np.isnan(amounts).any() else None


def at_equal_cost(pairs: Sequence[Pair], metric: Curves, costs: Mapping[str, Curves], level: float) -> list[EqualCost]:
    """Compare each pair at equal tokens and at equal seconds; each is a family of claims (Holm).

    Args:
        pairs: What is compared.
        metric: The compared metric.
        costs: "tokens" and "seconds".
        level: Of the intervals and the tests.

    Returns:
        Those with at least one seed that logged a cost.
    """
    found = {name: [_differences(pair, metric, cost) for pair in pairs] for name, cost in costs.items()}
    claims = {
        name: corrected([(estimate_mean(list(each.values()), level), 0) for each in of_pairs])
        for name, of_pairs in found.items()
    }
    result = []
    for i, (arm, baseline, _) in enumerate(pairs):
        seeds = tuple(sorted({seed for of_pairs in found.values() for seed in of_pairs[i]}))
        if seeds:
            result.append(EqualCost(arm, baseline, seeds, claims["tokens"][i], claims["seconds"][i]))
    return result


def _differences(pair: Pair, metric: Curves, cost: Curves) -> dict[int, float]:
    arm, baseline, seeds = pair
    differences = {}
    for seed in seeds:
        ours, theirs = (
            over_cost(metric[name][seed], cost[name][seed]) if seed in cost.get(name, {}) else None
            for name in (arm, baseline)
        )
        if ours is None or theirs is None:
            continue
        first, last = common_span([ours, theirs])
        if first < last:
            differences[seed] = ours.mean_over(first, last) - theirs.mean_over(first, last)
    return differences
