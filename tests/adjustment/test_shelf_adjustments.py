"""Dithering, the stretch and the threshold against plain loops, and what each leaves as it is."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.rollouts import rollout_of_logprobs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from grpovi_lightning.adjustment import (
    FixedRange,
    GaussianDithering,
    GroupRange,
    RunningRange,
    SequenceWeights,
    SigmoidRange,
    Stretch,
    Threshold,
    UniformDithering,
    UniformWeights,
    VarianceIncrease,
)
from grpovi_lightning.advantages import GroupAdvantage, LeaveOneOutAdvantage, OPOAdvantage
from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import dither_uniforms

NAN = math.nan


def sampled(n_prompts=1, size=4, seed=1, step=0, first=0):
    rollout = rollout_of_logprobs([[-float(row % 3)] for row in range(n_prompts * size)], size)
    prompts = replace(rollout.prompts, indices=torch.arange(first, first + n_prompts))
    return replace(rollout, prompts=prompts, seed=seed, step=step)


# Dithering.


def noise(adjustment, **where):
    rollout = sampled(**where)
    return adjustment(torch.zeros(len(rollout.prompts), rollout.group_size, dtype=torch.float64), rollout).rewards


@pytest.mark.parametrize(
    ("adjustment", "law"),
    [(GaussianDithering(0.3), stats.norm(scale=0.3)), (UniformDithering(0.3), stats.uniform(-0.3, 0.6))],
    ids=["gaussian", "uniform"],
)
def test_the_noise_has_the_law_that_it_says_and_is_the_quantile_of_its_uniform_number(adjustment, law):
    found = noise(adjustment, n_prompts=500, size=8)
    numbers = dither_uniforms(1, 0, torch.arange(500), 8).numpy()
    np.testing.assert_allclose(found.numpy(), law.ppf(numbers), rtol=1e-9, atol=1e-12)
    assert stats.kstest(found.flatten().numpy(), law.cdf).pvalue > 0.01
    for other in (found[:, 1], found[:, 0].roll(1)):  # of another completion, of another prompt
        assert stats.pearsonr(found[:, 0].numpy(), other.numpy()).pvalue > 0.01


def test_noise_depends_on_seed_step_prompt_and_completion_and_on_nothing_else():
    plain = noise(GaussianDithering(1.0), n_prompts=3)
    assert torch.equal(plain, noise(GaussianDithering(1.0), n_prompts=3))
    assert torch.equal(plain[1:], noise(GaussianDithering(1.0), n_prompts=2, first=1))
    assert torch.equal(plain, noise(GaussianDithering(1.0), n_prompts=3, size=9)[:, :4])
    others = [noise(GaussianDithering(1.0), n_prompts=3, **where) for where in ({"seed": 2}, {"step": 1}, {"first": 3})]
    everything = torch.cat([plain, *others])
    assert len(everything.unique()) == everything.numel()


def test_a_uniform_number_of_0_gives_a_finite_noise(monkeypatch):
    zero = torch.zeros(1, 4, dtype=torch.float64)  # of which there is one in 2^53
    monkeypatch.setattr("grpovi_lightning.adjustment.dithering.dither_uniforms", lambda *_: zero)
    assert (noise(GaussianDithering(1.0)) == stats.norm.ppf(2.0**-54)).all()


@pytest.mark.parametrize("dithering", [GaussianDithering, UniformDithering])
def test_a_width_of_0_changes_no_bit_and_says_that_it_adjusts_nothing(dithering):
    rewards = torch.tensor([[0.1, -1e30, NAN, 3e-39]])
    found = dithering(0.0)(rewards, sampled()).rewards
    assert torch.equal(found.view(torch.int32), rewards.view(torch.int32))
    assert not dithering(0.0).adjusts and dithering(1e-3).adjusts
    assert dithering(0.0).bounds((0.0, 1.0)) == (0.0, 1.0)


@pytest.mark.parametrize("width", [-0.1, NAN, math.inf])
@pytest.mark.parametrize("dithering", [GaussianDithering, UniformDithering])
def test_a_width_that_is_none_is_refused(dithering, width):
    with pytest.raises(UserError, match=rf"{dithering.__name__}: got a width of {width}, expected a finite number"):
        dithering(width)


@pytest.mark.parametrize("dithering", [GaussianDithering, UniformDithering])
def test_there_is_no_width_that_is_taken_without_being_given(dithering):
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        dithering()


@pytest.mark.parametrize("advantage", [GroupAdvantage("none"), LeaveOneOutAdvantage(), OPOAdvantage()])
def test_noise_leaves_the_expectation_of_advantages_that_are_linear_in_the_rewards(advantage):
    rewards, lengths = torch.tensor([[0.0, 1.0, 1.0, 0.5]], dtype=torch.float64), torch.tensor([[1, 5, 2, 2]])
    n = 4000
    found = GaussianDithering(0.2)(rewards.expand(n, 4), sampled(n)).rewards
    each = advantage(found, lengths.expand(n, 4))
    error = 5 * 0.2 / math.sqrt(n) * 1.4
    assert (each.mean(dim=0) - advantage(rewards, lengths)[0]).abs().max() < error
    assert each.std(dim=0).min() > 0.1


def test_pairs_do_feel_noise_through_their_order_and_through_equal_rewards_alone():
    # Why dithering is not refused with 0/1 rewards, pairs and standardised advantages, though different rewards have
    # +-0.7 whatever their distance: equal rewards, which taught nothing, now teach at random.
    n = 400
    zero_one = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).repeat(n, 1)
    found = GroupAdvantage()(UniformDithering(0.1)(zero_one, sampled(2 * n, 2)).rewards)
    before = GroupAdvantage()(zero_one)
    torch.testing.assert_close(found[::2], before[::2], rtol=1e-2, atol=0.0)  # but for the eps of the deviation
    assert (before[1::2] == 0).all() and (found[1::2].abs() > 0.5).all(dim=1).float().mean() > 0.95
    assert abs(found[1::2, 0].sign().mean()) < 0.2
    turned = GroupAdvantage()(GaussianDithering(1.0)(zero_one, sampled(2 * n, 2)).rewards)[::2, 0] > 0
    assert turned.float().mean().item() == pytest.approx(stats.norm.sf(1 / math.sqrt(2)), abs=0.1)


# The stretch.

groups = st.integers(2, 7).flatmap(
    lambda size: st.lists(
        st.lists(st.one_of(st.floats(-9, 9, width=32), st.just(NAN)), min_size=size, max_size=size),
        min_size=1,
        max_size=3,
    )
)


@given(rewards=groups, factor=st.sampled_from([0.25, 1.5, 2.0, 10.0]))
@settings(max_examples=80, deadline=None)
def test_a_stretch_keeps_the_mean_and_multiplies_the_variance_by_the_square(rewards, factor):
    found = Stretch(factor)(torch.tensor(rewards, dtype=torch.float64), sampled(len(rewards), len(rewards[0]))).rewards
    for before, after in zip(np.array(rewards), found.numpy(), strict=True):
        known = ~np.isnan(before)
        assert np.array_equal(known, ~np.isnan(after))
        if known.any():
            mean = np.mean(before[known])
            np.testing.assert_allclose(after[known], mean + factor * (before[known] - mean), rtol=1e-12, atol=1e-12)
            assert np.var(after[known]) == pytest.approx(factor**2 * np.var(before[known]), rel=1e-9, abs=1e-12)


def test_a_factor_of_1_changes_no_bit_and_equal_rewards_stay_equal_under_any():
    rewards = torch.tensor([[0.1, -1e30, NAN, 3e-39], [0.1, 0.1, 0.1, 0.1]])
    found = Stretch(1.0)(rewards, sampled(2)).rewards
    assert torch.equal(found.view(torch.int32), rewards.view(torch.int32)) and not Stretch(1.0).adjusts
    exact = torch.tensor([[0.1, 0.7, -3.3]], dtype=torch.float64)
    assert torch.equal(Stretch(1.0)(exact, sampled(size=3)).rewards, exact)
    assert torch.equal(Stretch(7.0)(rewards, sampled(2)).rewards[1], rewards[1]) and Stretch(7.0).adjusts


@pytest.mark.parametrize("factor", [0.0, -2.0, NAN, math.inf])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(UserError, match=f"Stretch: got a factor of {factor}, expected a finite number above 0"):
        Stretch(factor)


def test_what_bounds_stretched_and_dithered_rewards_is_known_where_the_rewards_bounds_are():
    assert Stretch(3.0).bounds((0.0, 1.0)) == (-2.0, 3.0) and Stretch(0.5).bounds((0.0, 1.0)) == (0.0, 1.0)
    assert UniformDithering(0.25).bounds((0.0, 1.0)) == (-0.25, 1.25)
    assert GaussianDithering(0.25).bounds((0.0, 1.0)) == GaussianDithering(0.25).bounds(None) == (-math.inf, math.inf)
    assert Stretch(3.0).bounds(None) is UniformDithering(0.25).bounds(None) is None


# The threshold.


def thresholded(rewards, weights, lower, upper):
    """One group, by the words of the definition; NaN was not scored."""
    known = [(r, w) for r, w in zip(rewards, weights, strict=True) if not math.isnan(r)]
    if len({r for r, _ in known}) < 2:
        return rewards
    mean = math.fsum(r * w for r, w in known) / math.fsum(w for _, w in known)

    def place(reward):
        if math.isclose(reward, mean, abs_tol=1e-13):
            return (lower + upper) / 2
        return upper if reward > mean else lower

    return [r if math.isnan(r) else place(r) for r in rewards]


tenths = st.one_of(st.integers(-20, 20).map(lambda n: n / 10), st.just(NAN))


@given(
    group=st.lists(st.tuples(tenths, st.floats(-6, 0, width=32)), min_size=2, max_size=7),
    weights=st.sampled_from([UniformWeights(), SequenceWeights()]),
)
@settings(max_examples=150, deadline=None)
def test_rewards_above_the_weighted_mean_go_to_the_top_and_those_below_to_the_bottom(group, weights):
    rewards = torch.tensor([[reward for reward, _ in group]], dtype=torch.float64)
    rollout = rollout_of_logprobs([[logprob] for _, logprob in group], len(group))
    found = Threshold(weights, FixedRange(-2.0, 2.0))(rewards, rollout).rewards[0].tolist()
    shares = [1.0 if isinstance(weights, UniformWeights) else math.exp(w) for _, w in group]
    assert found == pytest.approx(thresholded(rewards[0].tolist(), shares, -2.0, 2.0), nan_ok=True)


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e9])
def test_a_reward_at_the_mean_goes_to_the_middle_also_far_from_0(offset):
    # In a mean over numbers as large as these, a seventh of each, the middle one would be missed by its rounding.
    rewards = torch.arange(7, dtype=torch.float64)[None] + offset
    found = Threshold(UniformWeights(), GroupRange())(rewards, sampled(size=7)).rewards
    assert (found - offset).tolist() == [[0.0, 0.0, 0.0, 3.0, 6.0, 6.0, 6.0]]


@pytest.mark.parametrize("weights", [UniformWeights(), SequenceWeights()])
def test_where_all_rewards_are_at_the_ends_threshold_and_variance_increase_are_both_grpo(weights):
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, NAN, 0.0, 1.0]])
    for adjustment in (Threshold(weights, FixedRange(0.0, 1.0)), VarianceIncrease(weights, FixedRange(0.0, 1.0))):
        found = adjustment(rewards, sampled(3)).rewards
        torch.testing.assert_close(found, rewards, rtol=0.0, atol=0.0, equal_nan=True)


def test_a_threshold_has_the_defaults_of_the_variance_increase_and_describes_what_it_did():
    threshold = Threshold()
    assert isinstance(threshold.weights, SequenceWeights) and isinstance(threshold.range, RunningRange)
    assert threshold.needs_reference and not Threshold(UniformWeights()).needs_reference
    rewards = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    adjusted, increase = threshold(rewards, sampled())
    assert increase.adjusted is adjusted and torch.equal(increase.rewards, rewards)
    assert torch.equal(increase.log_weights, SequenceWeights()(sampled()))
    assert (increase.lower.item(), increase.upper.item()) == (0.0, 4.0)
    threshold.reward_changed()
    assert threshold.range.lower == torch.inf


def test_a_threshold_after_a_sigmoid_cuts_the_bent_rewards_and_keeps_the_dtype():
    rewards = torch.tensor([[3.0, 1.0, -5.0, 9.0]])
    found = Threshold(UniformWeights(), SigmoidRange(centre=1.0, scale=2.0))(rewards, sampled()).rewards
    assert found.dtype == torch.float32 and found.tolist() == [
        [1.0, 0.0, 0.0, 1.0]
    ]  # the mean of the bent ones is 0.57


def test_the_weight_of_one_completion_that_takes_all_puts_it_into_the_middle():
    rollout = rollout_of_logprobs([[-900.0], [0.0], [-900.0]], 3)
    found = Threshold(SequenceWeights(), FixedRange(0.0, 1.0))(torch.tensor([[0.9, 0.3, 0.1]]), rollout).rewards
    assert found.tolist() == [[1.0, 0.5, 0.0]]


@pytest.mark.parametrize("heavy", range(4))
@pytest.mark.parametrize("depth", [-36.0, -900.0], ids=["beyond the digits of the mean", "beyond all numbers"])
def test_weights_beyond_rounding_move_no_reward_that_is_at_an_end(heavy, depth):
    """The mean is all but one of the ends, and 0/1 rewards are on their own sides of it none the less."""
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    rollout = rollout_of_logprobs([[0.0 if member == heavy else depth] for member in range(4)], 4)
    for adjustment in (Threshold, VarianceIncrease):
        assert torch.equal(adjustment(SequenceWeights(), FixedRange(0.0, 1.0))(rewards, rollout).rewards, rewards)
