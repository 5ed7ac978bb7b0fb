import math

import numpy as np
import pytest

from analysis.curves import Curve, beside
from analysis.efficiency import Comparison, Target
from analysis.reward_kl import at_equal_kl, value_at_kl
from analysis.speedup import Speedup
from analysis.statistics import NO_ESTIMATE, estimate_mean, estimate_ratio
from analysis.verdict import verdicts_of

STEPS = np.arange(0.0, 101.0, 10.0)


def curve(function) -> Curve:
    return Curve(STEPS, np.array([function(step) for step in STEPS]))


def test_the_metric_is_read_off_where_kl_first_arrives():
    kl = Curve(np.array([0.0, 10.0, 20.0]), np.array([0.0, 0.1, 0.3]))
    reward = Curve(np.array([0.0, 10.0, 20.0]), np.array([1.0, 2.0, 4.0]))
    assert value_at_kl(reward, kl, 0.2) == pytest.approx(3.0)
    assert math.isnan(value_at_kl(reward, kl, 0.4))


def test_an_arm_that_only_moves_faster_along_the_same_path_is_equal_at_equal_kl():
    # Both follow reward = sqrt(kl); the arm spends KL twice as fast, so it is ahead at every step.
    kl = {
        "arm": {s: curve(lambda t: t / 50) for s in (1, 2, 3)},
        "base": {s: curve(lambda t: t / 100) for s in (1, 2, 3)},
    }
    reward = {name: {s: Curve(STEPS, np.sqrt(one.values)) for s, one in seeds.items()} for name, seeds in kl.items()}
    equal = at_equal_kl("arm", "base", [1, 2, 3], reward, kl)
    assert equal is not None and equal.seeds == (1, 2, 3)
    assert equal.kl == pytest.approx(1.0), "the largest KL that both reach"
    assert equal.difference.point == pytest.approx(0.0, abs=1e-12)
    assert reward["arm"][1].at(50) > reward["base"][1].at(50)


def test_a_better_direction_shows_at_equal_kl_per_seed():
    kl = {name: {s: curve(lambda t: t / 100) for s in (1, 2)} for name in ("arm", "base")}
    reward = {
        "arm": {1: curve(lambda t: t * 0.02), 2: curve(lambda t: t * 0.03)},
        "base": {s: curve(lambda t: t * 0.01) for s in (1, 2)},
    }
    equal = at_equal_kl("arm", "base", [1, 2], reward, kl)
    assert equal is not None
    assert equal.difference.values == pytest.approx((1.0, 2.0))
    assert equal.difference.point == pytest.approx(1.5)


def test_without_kl_or_with_kl_that_stays_at_zero_there_is_no_comparison():
    reward = {"arm": {1: curve(float)}, "base": {1: curve(float)}}
    zero = {"arm": {1: curve(lambda t: 0.0)}, "base": {1: curve(lambda t: 0.0)}}
    assert at_equal_kl("arm", "base", [1], reward, {}) is None
    assert at_equal_kl("arm", "base", [1], reward, zero) is None


def test_a_held_out_metric_goes_with_held_out_kl_and_a_training_metric_with_training_kl():
    assert (beside("eval/rewards/gold/mean", "kl"), beside("reward", "kl")) == ("eval/kl", "kl")


@pytest.mark.parametrize(
    ("speedups", "at_kl", "words"),
    [
        ([2.0, 2.1, 1.9], [0.01, -0.01, 0.0], "so the gain cannot be told from a weaker effective KL penalty"),
        ([0.5, 0.52, 0.48], [0.01, -0.01, 0.0], "so the loss cannot be told from a stronger effective KL penalty"),
        ([2.0, 2.1, 1.9], [-0.1, -0.11, -0.12], "the difference goes the other way, so the gain cannot be told"),
        ([2.0, 2.1, 1.9], [0.1, 0.11, 0.12], "So the gain is not only a matter of how far the policy moved."),
        ([0.5, 0.52, 0.48], [-0.1, -0.11, -0.12], "So the loss is not only a matter of how far the policy moved."),
    ],
)
def test_a_gain_or_loss_that_vanishes_at_equal_kl_is_called_a_matter_of_the_penalty(speedups, at_kl, words):
    from analysis.reward_kl import EqualKL

    comparison = Comparison(
        arm="arm",
        baseline="base",
        metric="reward",
        seeds=(1, 2, 3),
        n_excluded=0,
        baseline_excluded=0,
        paired_seeds=(1, 2, 3),
        target=Target(1.0, 0.0, 1.0, False, estimate_mean([1.0, 1.0, 1.0])),
        span=(0.0, 100.0),
        steps=NO_ESTIMATE,
        tokens=math.nan,
        seconds=math.nan,
        run_tokens=math.nan,
        run_seconds=math.nan,
        n_reached=3,
        speedup=Speedup(estimate_ratio(speedups)),
        final=NO_ESTIMATE,
        auc=NO_ESTIMATE,
        paired=estimate_mean([0.1, -0.1, 0.05]),
    )
    equal = EqualKL("arm", "base", (1, 2, 3), 0.1, estimate_mean(at_kl))
    assert words in " ".join(verdicts_of([(comparison, equal)])[0].sentences)
