import math

import numpy as np
import pytest
import torch
from helpers.exact_adjustment import exact_adjustment
from helpers.rollouts import rollout_of_logprobs

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
)

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


@pytest.mark.parametrize("range_", [SigmoidRange(0.0, 1.0), FixedRange(0.0, 1.0, clip=True), RunningRange()])
def test_range_only_does_what_the_range_does_and_nothing_more(range_):
    rewards = torch.tensor([[-1.0, 0.5, 0.25, 3.0]])
    adjusted, increase = RangeOnly(range_)(rewards, rollout_of_logprobs([[0.0]] * 4, 4))
    assert increase is None and adjusted.dtype == rewards.dtype
    torch.testing.assert_close(adjusted, range_(rewards)[0].float())
    assert isinstance(range_, RunningRange) == torch.equal(adjusted, rewards)
