import math

import numpy as np
import pytest
import torch
from helpers.exact_adjustment import exact_adjustment
from helpers.rollouts import rollout_of_logprobs
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning.adjustment import (
    FixedRange,
    GroupRange,
    IdentityAdjustment,
    MergeTies,
    RangeOnly,
    RunningRange,
    SequenceWeights,
    SigmoidRange,
    SplitTies,
    UniformWeights,
    VarianceIncrease,
    increase_variance,
)
from grpovi_lightning.errors import UserError

REWARDS = torch.tensor([[0.25, 0.5, 0.75, 0.5], [0.125, 0.125, 0.125, 0.125], [0.0, 1.0, 1.0, 0.0]])
LOG_WEIGHTS = [[-1.0, -2.0, -0.5, -3.0], [-1.0, -1.0, -2.0, -2.0], [-5.0, -1.0, -2.0, -40.0]]


def rollout():
    # Each log weight is spread over two tokens.
    return rollout_of_logprobs([[value / 2, value / 2] for group in LOG_WEIGHTS for value in group], group_size=4)


def exact():
    return np.array(
        [
            [float(z) for z in exact_adjustment(group, [math.exp(w) for w in weights], 0, 1)]
            for group, weights in zip(REWARDS.tolist(), LOG_WEIGHTS, strict=True)
        ]
    )


def test_the_identity_returns_the_very_same_rewards():
    rewards = torch.tensor([[0.1, float("inf"), -3.0]])
    adjusted, increase = IdentityAdjustment()(rewards, rollout())
    assert adjusted is rewards and increase is None


def test_the_variance_increase_weighs_by_the_reference_probability_of_the_sequence_by_default():
    adjustment = VarianceIncrease(range=FixedRange(0.0, 1.0))
    assert isinstance(adjustment.weights, SequenceWeights) and adjustment.needs_reference
    np.testing.assert_allclose(adjustment(REWARDS, rollout()).rewards.numpy(), exact(), atol=1e-6)


def test_what_it_did_comes_with_the_adjusted_rewards():
    adjusted, increase = VarianceIncrease(range=FixedRange(0.0, 1.0))(REWARDS, rollout())
    assert increase.adjusted is adjusted and torch.equal(increase.rewards, REWARDS)
    torch.testing.assert_close(increase.log_weights, torch.tensor(LOG_WEIGHTS, dtype=torch.float64))
    assert increase.lower.tolist() == [[0.0]] * 3 and increase.upper.tolist() == [[1.0]] * 3


def test_the_running_range_is_the_default_and_travels_in_the_checkpoint():
    adjustment = VarianceIncrease(weights=UniformWeights())
    assert isinstance(adjustment.range, RunningRange) and not adjustment.needs_reference
    adjustment(torch.tensor([[-2.0, 6.0]]), rollout_of_logprobs([[0.0], [0.0]], 2))
    resumed = VarianceIncrease(weights=UniformWeights())
    resumed.load_state_dict(adjustment.state_dict())
    increase = resumed.increase(torch.tensor([[0.0, 1.0]]), rollout_of_logprobs([[0.0], [0.0]], 2))
    assert (increase.lower.item(), increase.upper.item()) == (-2.0, 6.0)


def test_clipped_rewards_are_adjusted_from_where_they_were_clipped_to():
    adjustment = VarianceIncrease(UniformWeights(), FixedRange(0.0, 1.0, clip=True))
    rewards = torch.tensor([[-1.0, 0.5, 0.25, 3.0]])
    adjusted, increase = adjustment(rewards, rollout_of_logprobs([[0.0]] * 4, 4))
    # 0, 0.5, 0.25 and 1 sum to 1.75: 1, 0.75, 0, 0.
    torch.testing.assert_close(adjusted, torch.tensor([[0.0, 0.75, 0.0, 1.0]]))
    assert increase.rewards.tolist() == [[0.0, 0.5, 0.25, 1.0]]
    assert rewards.tolist() == [[-1.0, 0.5, 0.25, 3.0]]


def test_a_group_range_keeps_the_extremes_and_splits_ties_when_told():
    rewards = torch.tensor([[0.0, 0.5, 0.5, 1.0]])
    flat = rollout_of_logprobs([[0.0]] * 4, 4)
    merged = VarianceIncrease(UniformWeights(), GroupRange())(rewards, flat).rewards
    split = VarianceIncrease(UniformWeights(), GroupRange(), SplitTies())(rewards, flat).rewards
    torch.testing.assert_close(merged, rewards)
    torch.testing.assert_close(split, torch.tensor([[0.0, 1.0, 0.0, 1.0]]))


@pytest.mark.parametrize(("name", "expected"), [("merge", MergeTies), ("split", SplitTies)])
def test_ties_may_be_named_or_given(name, expected):
    assert type(VarianceIncrease(ties=name).ties) is expected
    assert type(VarianceIncrease(ties=expected()).ties) is expected
    assert type(VarianceIncrease().ties) is MergeTies


def test_a_name_that_stands_for_no_treatment_of_ties_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match="ties: got 'random', expected 'merge' or 'split'"):
        VarianceIncrease(ties="random")


def test_a_sigmoid_range_adjusts_the_bent_rewards_and_keeps_the_dtype():
    adjustment = VarianceIncrease(UniformWeights(), SigmoidRange(centre=1.0, scale=2.0))
    rewards = torch.tensor([[3.0, 1.0, -5.0, 2.0]])
    adjusted, increase = adjustment(rewards, rollout_of_logprobs([[0.0]] * 4, 4))
    bent = 1 / (1 + np.exp(-(rewards.double().numpy() - 1.0) / 2.0))
    np.testing.assert_allclose(increase.rewards.numpy(), bent, rtol=1e-14)
    assert adjusted.dtype == torch.float32
    expected = [float(z) for z in exact_adjustment(bent[0], [1, 1, 1, 1], 0, 1)]
    np.testing.assert_allclose(adjusted[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("range_", [SigmoidRange(0.0, 1.0), FixedRange(0.0, 1.0, clip=True)])
def test_range_only_does_what_the_range_does_and_nothing_more(range_):
    rewards = torch.tensor([[-1.0, 0.5, 0.25, 3.0]])
    adjusted, increase = RangeOnly(range_)(rewards, rollout_of_logprobs([[0.0]] * 4, 4))
    assert increase is None and adjusted.dtype == rewards.dtype
    torch.testing.assert_close(adjusted, range_(rewards)[0].float())
    assert not torch.equal(adjusted, rewards)


@pytest.mark.parametrize("range_", [RunningRange(), GroupRange(), FixedRange(0.0, 1.0)])
def test_range_only_of_a_range_that_moves_no_reward_is_refused(range_):
    with pytest.raises(UserError, match=f"RangeOnly cannot take effect: got {type(range_).__name__}"):
        RangeOnly(range_)


# Completions without a reward.

NAN = math.nan
RANGES = {
    "fixed": lambda: FixedRange(-9.0, 9.0),
    "clipped": lambda: FixedRange(-1.0, 1.0, clip=True),
    "group": GroupRange,
    "running": RunningRange,
    "sigmoid": SigmoidRange,
}
# Rewards are equal, or so far apart that a sigmoid fitted in another order of summation does not make them equal.
member = st.tuples(
    st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-900, 900).map(lambda n: n / 100), st.just(NAN)),
    st.floats(-8, 0, width=32),  # the reference's log-probability of the completion
)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("weights", [UniformWeights(), SequenceWeights()], ids=["uniform", "sequence"])
@pytest.mark.parametrize("ties", ["merge", "split"])
@given(members=st.lists(member, min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_completions_without_a_reward_move_the_others_as_if_they_were_not_there(name, weights, ties, members):
    def adjusted(rows):
        rollout = rollout_of_logprobs([[logprob] for _, logprob in rows], len(rows))
        rewards = torch.tensor([[reward for reward, _ in rows]], dtype=torch.float64)
        return VarianceIncrease(weights, RANGES[name](), ties)(rewards, rollout)

    found, increase = adjusted(members)
    scored = torch.tensor([[not math.isnan(reward) for reward, _ in members]])
    for values in (found, increase.rewards, increase.adjusted):
        assert torch.equal(values.isnan(), ~scored)
    assert torch.equal(increase.scored, scored)
    known = [row for row in members if not math.isnan(row[0])]
    if known:
        alone, other = adjusted(known)
        torch.testing.assert_close(found[scored], alone[0], rtol=0.0, atol=1e-8)
        torch.testing.assert_close(increase.rewards[scored], other.rewards[0], rtol=0.0, atol=1e-12)
        torch.testing.assert_close(increase.log_weights[scored], other.log_weights[0], rtol=0.0, atol=0.0)


def test_a_hand_worked_group_with_completions_without_a_reward():
    # 0.5, 0.25 and 0.5 sum to 1.25: 1, 0.25, 0 when ties are split; merged, the two share what is left of 1.25.
    rewards = torch.tensor([[0.5, NAN, 0.25, 0.5, NAN], [NAN] * 5, [NAN, 0.75, NAN, NAN, NAN]])
    rollout = rollout_of_logprobs([[0.0]] * 15, 5)
    for ties, expected in (("split", [1.0, NAN, 0.0, 0.25, NAN]), ("merge", [0.625, NAN, 0.0, 0.625, NAN])):
        found = VarianceIncrease(UniformWeights(), FixedRange(0.0, 1.0), ties)(rewards, rollout).rewards
        assert found[0].tolist() == pytest.approx(expected, nan_ok=True)
        assert found[1].isnan().all()
        assert found[2].tolist() == pytest.approx([NAN, 0.75, NAN, NAN, NAN], nan_ok=True)
    assert rewards.isnan().sum() == 11  # not written to


def test_a_completion_without_a_reward_takes_no_weight_however_probable_it_is():
    # It is exp(400) times as probable as the others, which alone share the weight.
    rollout = rollout_of_logprobs([[-400.0], [0.0], [-400.0], [-400.0]], 4)
    increase = VarianceIncrease(SequenceWeights(), FixedRange(0.0, 1.0)).increase(
        torch.tensor([[0.25, NAN, 0.5, 0.75]]), rollout
    )
    assert increase.adjusted[0].tolist() == pytest.approx([0.0, NAN, 0.5, 1.0], nan_ok=True)
    assert increase.log_weights.softmax(dim=1)[0].tolist() == pytest.approx([1 / 3, 0.0, 1 / 3, 1 / 3])


@pytest.mark.parametrize("name", RANGES)
def test_where_every_completion_has_a_reward_the_solution_is_that_of_the_closed_form_to_the_last_bit(name):
    rewards = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    rollout = rollout_of_logprobs((-30 * torch.rand(72, 1, generator=torch.Generator().manual_seed(1))).tolist(), 8)
    increase = VarianceIncrease(range=RANGES[name]()).increase(rewards, rollout)
    bounded, lower, upper = RANGES[name]()(rewards)
    direct = increase_variance(bounded, SequenceWeights()(rollout), lower=lower, upper=upper).float()
    assert torch.equal(increase.adjusted, direct) and torch.equal(increase.rewards, bounded)
    assert increase.scored.all()


@pytest.mark.parametrize("range_", [SigmoidRange(0.0, 1.0), FixedRange(0.0, 1.0, clip=True)])
def test_range_only_leaves_completions_without_a_reward_without_one(range_):
    rewards = torch.tensor([[-0.5, NAN, 0.25], [NAN, NAN, NAN]])
    found = RangeOnly(range_)(rewards, rollout_of_logprobs([[0.0]] * 6, 3)).rewards
    assert torch.equal(found.isnan(), rewards.isnan())


def test_the_closed_form_itself_still_refuses_a_reward_that_is_no_number():
    with pytest.raises(ValueError, match=r"rewards: got nan at \[0, 1\], expected a finite number"):
        increase_variance(torch.tensor([[0.5, NAN]]), lower=0.0, upper=1.0)


def test_the_adjustments_hand_on_that_the_reward_changed():
    increase, only = VarianceIncrease(UniformWeights(), RunningRange()), RangeOnly(SigmoidRange())
    for adjustment in (increase, only, IdentityAdjustment()):
        adjustment(torch.tensor([[0.0, 1.0, 5.0]]), rollout_of_logprobs([[0.0]] * 3, group_size=3))
        adjustment.reward_changed()
    assert increase.range.lower == torch.inf and only.range.centre.isnan()
