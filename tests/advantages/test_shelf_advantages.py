"""OPO, MaxRL, the focal weight and REINFORCE++ against plain loops, and what each is a special case of."""

import math

import numpy as np
import pytest
import torch
from helpers import advantage_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning.advantages import (
    FocalAdvantage,
    GroupAdvantage,
    LeaveOneOutAdvantage,
    MaxRLAdvantage,
    OPOAdvantage,
    ReinforcePlusPlusAdvantage,
)
from grpovi_lightning.errors import TrainingError, UserError

NAN = math.nan


def batches(reward):
    """Batches (rewards, lengths) of lists, groups of two to six."""
    member = st.tuples(st.one_of(reward, st.just(NAN)), st.integers(1, 30))
    groups = st.integers(2, 6).flatmap(
        lambda size: st.lists(st.lists(member, min_size=size, max_size=size), min_size=1, max_size=4)
    )
    return groups.map(lambda batch: tuple([[pair[i] for pair in group] for group in batch] for i in (0, 1)))


ANY = batches(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-9, 9, width=32)))
POSITIVE = batches(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 9, width=32)))
SHARES = batches(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32)))


def check(advantage, batch, expected):
    rewards, lengths = batch
    found = advantage(torch.tensor(rewards, dtype=torch.float64), torch.tensor(lengths))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


@given(batch=ANY)
@settings(max_examples=80, deadline=None)
def test_opo_is_the_reward_minus_the_mean_over_tokens(batch):
    check(OPOAdvantage(), batch, reference.length_weighted_advantages(*batch))


@given(batch=POSITIVE)
@settings(max_examples=80, deadline=None)
def test_maxrl_is_the_distance_from_the_mean_in_units_of_it(batch):
    check(MaxRLAdvantage(), batch, reference.maximum_likelihood_advantages(batch[0]))


@given(batch=SHARES, gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
@settings(max_examples=80, deadline=None)
def test_the_focal_weight_falls_with_the_mean_of_the_group(batch, gamma):
    check(FocalAdvantage(gamma), batch, reference.focal_advantages(batch[0], gamma))


@given(batch=ANY)
@settings(max_examples=80, deadline=None)
def test_reinforce_plus_plus_is_whitened_over_every_token_of_the_batch(batch):
    check(ReinforcePlusPlusAdvantage(), batch, reference.whitened_advantages(*batch))


def test_the_whitened_advantages_have_mean_0_and_variance_1_over_tokens():
    rewards = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.randint(1, 50, (5, 4), generator=torch.Generator().manual_seed(1))
    tokens = ReinforcePlusPlusAdvantage()(rewards, lengths).flatten().repeat_interleave(lengths.flatten())
    assert tokens.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert tokens.var().item() == pytest.approx(1.0, rel=1e-6)


# What is a special case of what.

REWARDS = torch.rand(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
EQUAL_LENGTHS = torch.full((4, 6), 7)


def test_where_all_completions_are_equally_long_opo_is_the_unscaled_group_advantage():
    torch.testing.assert_close(OPOAdvantage()(REWARDS, EQUAL_LENGTHS), GroupAdvantage("none")(REWARDS))


def test_where_all_completions_are_equally_long_reinforce_plus_plus_is_the_unscaled_one_by_its_deviation():
    plain = GroupAdvantage("none")(REWARDS)
    n_tokens = EQUAL_LENGTHS.sum()
    deviation = (plain.square().sum() * 7 / (n_tokens - 1) + 1e-8).sqrt()
    torch.testing.assert_close(ReinforcePlusPlusAdvantage()(REWARDS, EQUAL_LENGTHS), plain / deviation)


def test_maxrl_is_the_unscaled_group_advantage_by_the_mean():
    expected = GroupAdvantage("none")(REWARDS) / REWARDS.mean(dim=1, keepdim=True)
    torch.testing.assert_close(MaxRLAdvantage()(REWARDS), expected)


def test_the_expected_gradient_of_maxrl_is_that_of_the_log_of_the_success_rate_cut_off_at_the_group():
    # The derivative of log p is 1 / p = sum_j (1 - p)^j; a group of G gives the first G - 1 terms.
    p, size = 0.3, 4
    total = 0.0
    for successes in range(1, size + 1):
        chance = math.comb(size, successes) * p**successes * (1 - p) ** (size - successes)
        rewards = torch.tensor([[1.0] * successes + [0.0] * (size - successes)], dtype=torch.float64)
        found = MaxRLAdvantage()(rewards)[0]
        # The derivative of log pi by p is 1 / p for a success, -1 / (1 - p) for a failure.
        scores = [1 / p] * successes + [-1 / (1 - p)] * (size - successes)
        total += chance * sum(a * s for a, s in zip(found.tolist(), scores, strict=True)) / size
    assert total == pytest.approx(sum((1 - p) ** j for j in range(size - 1)), rel=1e-9)


@pytest.mark.parametrize(
    "other", [GroupAdvantage(), LeaveOneOutAdvantage(), OPOAdvantage(), ReinforcePlusPlusAdvantage()]
)
def test_with_gamma_0_the_focal_weight_changes_no_bit_of_any_other_advantage(other):
    rewards = torch.cat([REWARDS.float(), torch.tensor([[1.0] * 6, [0.0] * 6, [NAN, 1.0, 0.0, 0.5, NAN, 0.25]])])
    lengths = torch.arange(42).view(7, 6) + 1
    assert torch.equal(FocalAdvantage(0.0, other)(rewards, lengths), other(rewards, lengths))


def test_a_focal_weight_takes_over_what_the_other_needs_and_is_defined_for():
    weighted = FocalAdvantage(1.0, OPOAdvantage())
    assert weighted.needs_lengths and not weighted.ignores_scale and not weighted.standardised
    assert FocalAdvantage(1.0).ignores_scale and not FocalAdvantage(1.0).needs_lengths
    assert FocalAdvantage(1.0, MaxRLAdvantage()).domain == (0.0, 1.0)


# Bad input.


@pytest.mark.parametrize("gamma", [-0.5, NAN, math.inf])
def test_a_gamma_that_is_none_is_refused(gamma):
    with pytest.raises(
        UserError, match=f"FocalAdvantage: got a gamma of {gamma}, expected a finite number of at least"
    ):
        FocalAdvantage(gamma)


def test_a_negative_reward_is_refused_by_maxrl_with_what_to_do():
    with pytest.raises(TrainingError) as error:
        MaxRLAdvantage()(torch.tensor([[1.0, 2.0], [0.5, -0.25]]))
    assert str(error.value) == (
        "MaxRLAdvantage: got reward -0.25 for completion 1 of prompt 1, expected rewards of at least 0; take another "
        "reward, or an adjustment such as RangeOnly with a SigmoidRange"
    )


def test_a_sum_of_parts_that_is_rounded_above_1_is_still_within_0_and_1():
    above = torch.tensor([[1.0, 0.0], [1.0, 1.0]]) + torch.tensor([[1e-7, 0.0], [1e-7, 1e-7]])
    assert (above > 1).any()
    found = FocalAdvantage(0.5)(above)
    torch.testing.assert_close(found, FocalAdvantage(0.5)(torch.tensor([[1.0, 0.0], [1.0, 1.0]])), atol=1e-6, rtol=1e-6)
