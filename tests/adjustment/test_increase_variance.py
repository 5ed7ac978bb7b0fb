"""The closed form against exact arithmetic and the paper's two searches, and the properties that follow."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.exact_adjustment import exact_adjustment
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from grpovi_lightning.adjustment import increase_variance
from grpovi_lightning.adjustment.reference import enumeration_search, one_pass_search

LN2 = math.log(2)


@st.composite
def groups(draw, min_size=1, max_size=8, deepest=40, distinct=False):
    """(rewards in sixteenths of the range, binary exponents of the weights, lower, upper)."""
    lower, upper = draw(st.sampled_from([(0.0, 1.0), (-1.0, 3.0), (-7.0, -5.0)]))
    size = draw(st.integers(min_size, max_size))
    steps = draw(st.lists(st.integers(0, 16), min_size=size, max_size=size, unique=distinct))
    depth = draw(st.sampled_from([0, 3, deepest]))
    exponents = draw(st.lists(st.integers(0, depth), min_size=size, max_size=size))
    return [lower + (upper - lower) * step / 16 for step in steps], exponents, lower, upper


def adjusted(rewards, exponents, lower, upper, ties="merge", dtype=torch.float64):
    log_weights = torch.tensor([[-LN2 * exponent for exponent in exponents]], dtype=torch.float64)
    result = increase_variance(torch.tensor([rewards], dtype=dtype), log_weights, lower=lower, upper=upper, ties=ties)
    assert result.dtype == dtype
    return result[0].double().numpy()


def normalised(exponents):
    weights = np.array([2.0 ** (min(exponents) - exponent) for exponent in exponents])
    return weights / weights.sum()


def assert_as_exact(rewards, exponents, lower, upper, ties):
    """Every value is as near the exact one as rounding of the log weights allows.

    A value is (A - B) / p with A the mass at and below it, so its error is that of the weights times A / p.
    """
    weights = [Fraction(1, 2**exponent) for exponent in exponents]
    exact = exact_adjustment(rewards, weights, lower, upper, ties)
    found = adjusted(rewards, exponents, lower, upper, ties)
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    for position, i in enumerate(order):
        if ties == "merge":
            atom, below = (
                [j for j in order if rewards[j] == rewards[i]],
                [j for j in order if rewards[j] <= rewards[i]],
            )
        else:
            atom, below = [i], order[position:]
        share = [weights[j] * (Fraction(rewards[j]) - Fraction(lower)) for j in below]
        condition = 1 + sum(share) / sum(weights[j] for j in atom) / Fraction(upper - lower)
        error = abs(Fraction(float(found[i])) - exact[i]) / Fraction(upper - lower)
        assert error <= Fraction(1e-12) * condition, (found[i], float(exact[i]))


@pytest.mark.parametrize("ties", ["merge", "split"])
@given(group=groups(max_size=6, deepest=2900))
@settings(max_examples=150, deadline=None)
def test_it_is_the_exact_rational_solution_with_weights_down_to_exp_of_minus_2000(ties, group):
    assert_as_exact(*group, ties)


@pytest.mark.parametrize("below", [1e-3, 1e-8, 4e-10, 1e-13])
def test_a_reward_just_under_the_bound_keeps_full_precision_for_the_tiny_weights_below_it(below):
    # What the top lacks to the bound, 1 * below, is paid from completions whose weights are as small as that.
    rewards, exponents = [3.0 - below, 2.8, 1.26, 0.85], [0, 28, 40, 60]
    for ties in ("merge", "split"):
        assert_as_exact(rewards, exponents, 0.0, 3.0, ties)


@given(group=groups(min_size=1, max_size=8, deepest=12))
@settings(max_examples=150, deadline=None)
def test_split_ties_reach_the_objective_of_the_papers_two_searches(group):
    rewards, exponents, lower, upper = group
    assume(len(set(rewards)) > 1)  # equal rewards stay as they are, where the paper would spread them
    weights = normalised(exponents)
    objective = weights @ adjusted(*group, ties="split") ** 2
    for search in (enumeration_search, one_pass_search):
        found, best = search(rewards, weights, lower, upper)
        assert objective == pytest.approx(best, abs=1e-11 * max(lower**2, upper**2))
        assert best == pytest.approx(weights @ found**2, abs=1e-12 * max(lower**2, upper**2))


@given(group=groups(min_size=2, max_size=8, deepest=12, distinct=True))
@settings(max_examples=100, deadline=None)
def test_without_ties_merge_and_split_are_the_same(group):
    np.testing.assert_array_equal(adjusted(*group, ties="merge"), adjusted(*group, ties="split"))


@given(group=groups(max_size=10, deepest=2900))
@example(group=([0.75, 0.5, 0.4, 0.25], [0, 60, 61, 0], 0.0, 1.0))
@example(group=([0.26, 0.13999999999999999, 0.1, -0.06], [0, 75, 55, 0], -0.1, 0.3))
@settings(max_examples=150, deadline=None)
def test_order_bounds_weighted_mean_and_the_rise_of_the_variance_hold(group):
    rewards, exponents, lower, upper = group
    weights, raw, span = normalised(exponents), np.array(rewards), upper - lower
    for ties in ("merge", "split"):
        found = adjusted(*group, ties=ties)
        assert found.min() >= lower and found.max() <= upper
        for i in range(len(raw)):
            assert (found[i] >= found[raw < raw[i]]).all()
            if ties == "merge":
                assert (found[raw == raw[i]] == found[i]).all()
        assert weights @ found == pytest.approx(weights @ raw, abs=1e-11 * span)
        after, before = weights @ (found - weights @ found) ** 2, weights @ (raw - weights @ raw) ** 2
        assert after >= before - 1e-11 * span**2


@given(st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_holds_where_the_mean_is_spent_exactly_above_completions_of_vanishing_weight(random):
    # The two outer completions have nearly all the weight and balance each other; what is left for those between
    # them is rounding noise, which must not be spent out of order.
    inner = sorted((random.uniform(0.26, 0.74) for _ in range(4)), reverse=True)
    exponents = [0, *(random.randint(50, 90) for _ in inner), 0]
    found = adjusted([0.75, *inner, 0.25], exponents, 0.0, 1.0)
    assert (np.diff(found) <= 0).all()


@given(group=groups(max_size=8, deepest=12))
@settings(max_examples=100, deadline=None)
def test_adjusting_twice_changes_nothing(group):
    rewards, exponents, lower, upper = group
    once = adjusted(*group)
    twice = adjusted(once.tolist(), exponents, lower, upper)
    weights = normalised(exponents)
    # The value between the bounds is known as well as the mean is, divided by its weight.
    assert (weights * np.abs(twice - once)).max() <= 1e-14 * max(abs(lower), abs(upper), upper - lower) * len(rewards)


@given(group=groups(min_size=2, max_size=8), data=st.data())
@settings(max_examples=100, deadline=None)
def test_permuting_a_group_permutes_the_result(group, data):
    rewards, exponents, lower, upper = group
    order = data.draw(st.permutations(range(len(rewards))))
    permuted = adjusted([rewards[i] for i in order], [exponents[i] for i in order], lower, upper)
    weights = normalised(exponents)[list(order)]
    gap = weights * np.abs(permuted - adjusted(*group)[list(order)])
    assert gap.max() <= 1e-14 * (upper - lower) * len(rewards)


@given(group=groups(min_size=2), scale=st.sampled_from([0.25, 2.0, 64.0]), shift=st.integers(-8, 8))
@settings(max_examples=100, deadline=None)
def test_scaling_and_shifting_rewards_and_range_scales_and_shifts_the_result(group, scale, shift):
    rewards, exponents, lower, upper = group
    moved = adjusted([scale * r + shift for r in rewards], exponents, scale * lower + shift, scale * upper + shift)
    gap = normalised(exponents) * np.abs(moved - (scale * adjusted(*group) + shift))
    assert gap.max() <= 1e-13 * scale * max(abs(lower), abs(upper), 8.0)


@given(bits=st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=12), seed=st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_rewards_of_0_and_1_are_a_fixed_point(bits, seed):
    log_weights = 30 * torch.randn(1, len(bits), generator=torch.Generator().manual_seed(seed))
    rewards = torch.tensor([bits])
    assert torch.equal(increase_variance(rewards, log_weights, lower=0.0, upper=1.0), rewards)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equal_rewards_are_returned_to_the_bit_even_where_the_paper_would_spread_them(dtype):
    rewards = torch.full((2, 5), 0.3, dtype=dtype)
    for ties in ("merge", "split"):
        assert torch.equal(increase_variance(rewards, torch.randn(2, 5), lower=0.0, upper=1.0, ties=ties), rewards)


def test_a_group_of_one_stays_as_it_is():
    rewards = torch.tensor([[0.25], [0.75]])
    assert torch.equal(increase_variance(rewards, torch.tensor([[3.0], [-5.0]]), lower=0.0, upper=1.0), rewards)


@given(rewards=st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True), weight=st.floats(-3, 3))
@settings(max_examples=100, deadline=None)
def test_with_two_completions_standardised_advantages_are_those_of_grpo(rewards, weight):
    assume(abs(rewards[0] - rewards[1]) > 1e-3)
    raw = torch.tensor([rewards], dtype=torch.float64)
    found = increase_variance(raw, torch.tensor([[0.0, weight]]), lower=0.0, upper=1.0)

    def standardised(values):
        return (values - values.mean(dim=1, keepdim=True)) / values.std(dim=1, keepdim=True)

    torch.testing.assert_close(standardised(found), standardised(raw))


def test_a_hand_worked_group_of_uniform_weights():
    # Mean 0.45, so of four quarters 1.8 are spent: 1, 0.8, 0, 0.
    rewards = torch.tensor([[0.3, 0.8, 0.1, 0.6]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(increase_variance(rewards, lower=0.0, upper=1.0), expected)


def test_merged_ties_share_what_split_ties_hand_to_the_first():
    rewards = torch.tensor([[0.5, 0.5, 0.2]], dtype=torch.float64)  # 1.2 to spend
    torch.testing.assert_close(
        increase_variance(rewards, lower=0.0, upper=1.0), torch.tensor([[0.6, 0.6, 0.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        increase_variance(rewards, lower=0.0, upper=1.0, ties="split"),
        torch.tensor([[1.0, 0.2, 0.0]], dtype=torch.float64),
    )


def test_a_completion_of_weight_zero_follows_the_order_and_moves_nobody():
    rewards = torch.tensor([[0.9, 0.6, 0.5, 0.1]], dtype=torch.float64)
    zero = torch.tensor([[0.0, -torch.inf, 0.0, 0.0]], dtype=torch.float64)
    found = increase_variance(rewards, zero, lower=0.0, upper=1.0)
    without = increase_variance(rewards[:, [0, 2, 3]], lower=0.0, upper=1.0)
    torch.testing.assert_close(found[:, [0, 2, 3]], without)
    assert found[0, 0] >= found[0, 1] >= found[0, 2]


def test_no_weights_are_uniform_weights_and_only_their_ratios_count():
    rewards = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    none = increase_variance(rewards, lower=0.0, upper=1.0)
    for constant in (0.0, -1500.0, 700.0):
        torch.testing.assert_close(increase_variance(rewards, torch.full((4, 8), constant), lower=0.0, upper=1.0), none)


def test_every_group_is_solved_by_itself_with_its_own_bounds():
    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(6, 5, generator=generator)
    weights = torch.randn(6, 5, generator=generator)
    lower, upper = -torch.rand(6, 1, generator=generator), 1 + torch.rand(6, 1, generator=generator)
    together = increase_variance(rewards, weights, lower=lower, upper=upper)
    for i in range(6):
        alone = increase_variance(rewards[i : i + 1], weights[i : i + 1], lower=lower[i].item(), upper=upper[i].item())
        torch.testing.assert_close(together[i : i + 1], alone)
        assert lower[i] <= together[i].min() and together[i].max() <= upper[i]
    assert len({round(value, 3) for value in together.amax(dim=1).tolist()}) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_keep_order_and_bounds_that_they_cannot_represent(dtype):
    generator = torch.Generator().manual_seed(2)
    rewards = (0.1 + 0.6 * torch.rand(200, 8, generator=generator)).to(dtype)
    rewards[:, 0], rewards[:, 1] = 0.1, 0.7
    found = increase_variance(rewards, 5 * torch.randn(200, 8, generator=generator), lower=0.1, upper=0.7)
    assert found.dtype == dtype
    edge = torch.tensor([0.1, 0.7], dtype=dtype)
    assert found.min() >= edge[0] and found.max() <= edge[1]
    order = rewards.double().argsort(dim=1, descending=True)
    assert (found.gather(1, order).double().diff(dim=1) <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (-3.0, 5.0)])
def test_narrow_dtypes_keep_the_weighted_mean_to_their_resolution(dtype, lower, upper):
    generator = torch.Generator().manual_seed(3)
    rewards = (lower + (upper - lower) * torch.rand(500, 8, generator=generator)).to(dtype)
    log_weights = 3 * torch.randn(500, 8, generator=generator, dtype=torch.float64)
    found = increase_variance(rewards, log_weights, lower=lower, upper=upper)
    weights = log_weights.softmax(dim=1)
    before, after = ((weights * values.double()).sum(dim=1) for values in (rewards, found))
    # All that is left is the rounding of the one value between the bounds, half a unit in its last place.
    assert (after - before).abs().max() <= torch.finfo(dtype).eps / 2 * max(abs(lower), abs(upper))
    assert not torch.equal(found, rewards)


def test_a_strided_view_is_read_and_no_argument_is_written_to():
    rewards, weights = torch.rand(5, 4).T, torch.randn(5, 4).T
    copies = rewards.clone(), weights.clone()
    lower, upper = torch.zeros(4, 1), torch.ones(4, 1)
    found = increase_variance(rewards, weights, lower=lower, upper=upper)
    assert torch.equal(rewards, copies[0]) and torch.equal(weights, copies[1])
    assert torch.equal(lower, torch.zeros(4, 1)) and torch.equal(upper, torch.ones(4, 1))
    torch.testing.assert_close(found, increase_variance(*copies, lower=0.0, upper=1.0))


def test_rewards_with_gradient_give_a_result_without():
    rewards = torch.rand(2, 3, requires_grad=True)
    assert not increase_variance(rewards, lower=0.0, upper=1.0).requires_grad


NAN, INF = float("nan"), float("inf")
GOOD = [[0.1, 0.9], [0.2, 0.4]]


@pytest.mark.parametrize(
    ("rewards", "settings", "message"),
    [
        ([[0.1, 0.9], [0.2, NAN]], {}, r"rewards: got nan at \[1, 1\], expected a finite number"),
        ([[0.1, INF], [0.2, 0.4]], {}, r"rewards: got inf at \[0, 1\], expected a finite number"),
        ([[0.1, 0.9], [-0.25, 0.4]], {}, r"rewards: got -0.25 at \[1, 0\], expected at least the lower bound"),
        ([[0.1, 0.9], [0.2, 1.5]], {}, r"rewards: got 1.5 at \[1, 1\], expected at most the upper bound"),
        (GOOD, {"log_weights": [[0.0, 0.0], [NAN, 0.0]]}, r"log_weights: got nan at \[1, 0\]"),
        (GOOD, {"log_weights": [[0.0, INF], [0.0, 0.0]]}, r"log_weights: got inf at \[0, 1\]"),
        (GOOD, {"log_weights": [[0.0, 0.0], [-INF, -INF]]}, r"log_weights: got -inf at \[1, 0\], expected one weight"),
        (GOOD, {"log_weights": [[0.0, 0.0]]}, r"log_weights: got shape \[1, 2\], expected that of rewards, \[2, 2\]"),
        (GOOD, {"lower": 1.0}, r"lower: got 1.0 at \[0, 0\], expected less than upper"),
        (GOOD, {"lower": [[0.0], [2.0]]}, r"lower: got 2.0 at \[1, 0\], expected less than upper"),
        (GOOD, {"upper": INF}, r"upper: got inf at \[0, 0\], expected a finite number"),
        (GOOD, {"upper": [[1.0, 1.0]]}, r"upper: got shape \[1, 2\], expected a number or \[2, 1\]"),
        (GOOD, {"ties": "random"}, r"ties: got 'random', expected 'merge' or 'split'"),
        ([0.1, 0.2], {}, r"rewards: got torch.float32 \[2\], expected a float tensor \[P, G\]"),
        ([[0, 1]], {}, r"rewards: got torch.int64 \[1, 2\], expected a float tensor"),
        ([[], []], {}, r"rewards: got torch.float32 \[2, 0\]"),
    ],
)
def test_what_cannot_be_solved_is_refused_with_value_and_position(rewards, settings, message):
    settings = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in settings.items()}
    with pytest.raises(ValueError, match=message):
        increase_variance(torch.tensor(rewards), **{"lower": 0.0, "upper": 1.0, **settings})


def test_the_papers_searches_agree_with_exact_arithmetic():
    rng = np.random.default_rng(0)
    for _ in range(30):
        size = rng.integers(2, 7)
        rewards, exponents = rng.integers(0, 9, size) / 8, rng.integers(0, 4, size)
        if len(set(rewards)) == 1:
            continue
        weights = [Fraction(1, 2 ** int(exponent)) for exponent in exponents]
        exact = exact_adjustment(rewards, weights, 0, 1, "split")
        best = float(sum(w * z * z for w, z in zip(weights, exact, strict=True)) / sum(weights))
        for search in (enumeration_search, one_pass_search):
            found, objective = search(rewards, [float(weight) for weight in weights], 0.0, 1.0)
            assert objective == pytest.approx(best, abs=1e-12)
            assert float(sum(w * Fraction(z) for w, z in zip(weights, found, strict=True))) == pytest.approx(
                float(sum(w * Fraction(r) for w, r in zip(weights, rewards, strict=True))), abs=1e-12
            )
