"""The metric at equal tokens and seconds: against numerical integration, and the cases in which nothing can be said."""

import numpy as np
import pytest
from scipy.integrate import quad

from analysis.curves import Curve
from analysis.equal_cost import at_equal_cost, over_cost

STEPS = np.arange(0.0, 101.0, 10.0)
SEEDS = (1, 2, 3)
PAIRS = [("arm", "base", SEEDS)]


def curves(**functions):
    """arm -> seed -> the function of step and seed at the evaluations."""
    return {
        name: {seed: Curve(STEPS, np.array([function(step, seed) for step in STEPS])) for seed in SEEDS}
        for name, function in functions.items()
    }


def rise(step, seed):
    return 0.01 * step + 0.0001 * seed * step**2


def test_a_run_that_costs_half_as_much_is_compared_with_the_first_half_of_the_other():
    metric = curves(arm=rise, base=rise)
    costs = {
        "tokens": curves(arm=lambda t, _: 8 * t, base=lambda t, _: 8 * t),
        "seconds": curves(arm=lambda t, _: 0.5 * t, base=lambda t, _: 1.0 * t),
    }
    (equal,) = at_equal_cost(PAIRS, metric, costs, 0.05)
    assert (equal.arm, equal.baseline, equal.seeds) == ("arm", "base", SEEDS)
    assert equal.tokens.estimate.values == (0.0, 0.0, 0.0) and equal.tokens.direction == 0
    expected = []
    for seed in SEEDS:
        straight = metric["arm"][seed].at  # linear between the evaluations
        means = [
            quad(lambda x, s=scale: straight(x * s), 0, 50, limit=400, points=np.arange(5, 50, 5))[0] / 50  # noqa: B023
            for scale in (2.0, 1.0)
        ]
        expected.append(means[0] - means[1])
    assert equal.seconds.estimate.values == pytest.approx(expected)
    assert equal.seconds.direction == 1


def test_each_cost_is_a_family_of_claims():
    pairs = [("arm", "base", SEEDS), ("other", "base", SEEDS)]
    metric = curves(arm=lambda t, s: t + s * t / 10, other=lambda t, s: t + (s - 2) * t, base=lambda t, s: t)
    cost = curves(**dict.fromkeys(("arm", "other", "base"), lambda t, s: 2 * t))
    found = at_equal_cost(pairs, metric, {"tokens": cost, "seconds": {}}, 0.05)
    assert [equal.tokens.n_tested for equal in found] == [2, 2]
    assert found[0].tokens.p == pytest.approx(2 * found[0].tokens.estimate.p)
    assert [equal.seconds.n_tested for equal in found] == [0, 0] and found[0].seconds.direction == 0


def test_a_seed_without_its_cost_is_left_out_and_a_pair_without_any_is_not_compared():
    metric = curves(arm=rise, base=rise)
    some = curves(arm=lambda t, _: t, base=lambda t, _: t)
    del some["base"][2]
    (equal,) = at_equal_cost(PAIRS, metric, {"tokens": some, "seconds": {}}, 0.05)
    assert equal.seeds == (1, 3)
    assert at_equal_cost(PAIRS, metric, {"tokens": {}, "seconds": {}}, 0.05) == []


@pytest.mark.parametrize("amounts", [[0.0, 1.0, 1.0], [0.0, 2.0, 1.0]], ids=["stands still", "falls"])
def test_a_cost_that_does_not_rise_is_none(amounts):
    steps = np.array([0.0, 10.0, 20.0])
    assert over_cost(Curve(steps, steps), Curve(steps, np.array(amounts))) is None
    assert over_cost(Curve(steps, steps), Curve(steps[:2], np.array([0.0, 1.0]))) is None, "it is not known at 20"
