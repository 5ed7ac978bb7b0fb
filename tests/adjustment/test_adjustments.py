import math

import numpy as np
import pytest
import torch
from helpers.exact_adjustment import exact_adjustment
from helpers.rollouts import rollout_of_logprobs

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import (
    FixedRange,
    GroupRange,
    IdentityAdjustment,
    RunningRange,
    SequenceWeights,
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


def test_the_identity_returns_the_very_same_rewards_and_nothing_to_log():
    rewards = torch.tensor([[0.1, float("inf"), -3.0]])
    adjusted, metrics = IdentityAdjustment()(rewards, rollout())
    assert adjusted is rewards and metrics == {}


def test_the_variance_increase_weighs_by_the_reference_probability_of_the_sequence_by_default():
    adjustment = VarianceIncrease(range=FixedRange(0.0, 1.0))
    assert isinstance(adjustment.weights, SequenceWeights) and adjustment.needs_reference
    np.testing.assert_allclose(adjustment(REWARDS, rollout()).rewards.numpy(), exact(), atol=1e-6)


def test_what_it_logs_is_what_numpy_finds():
    metrics = VarianceIncrease(range=FixedRange(0.0, 1.0))(REWARDS, rollout()).metrics
    raw, after = REWARDS.double().numpy(), exact()
    weights = np.exp(np.array(LOG_WEIGHTS))
    weights /= weights.sum(axis=1, keepdims=True)

    def weighted_variance(values):
        return np.mean([np.cov(row, aweights=w, ddof=0) for row, w in zip(values, weights, strict=True)])

    assert metrics == pytest.approx(
        {
            keys.ADJUSTMENT_VARIANCE_BEFORE: weighted_variance(raw),
            keys.ADJUSTMENT_VARIANCE_AFTER: weighted_variance(after),
            keys.ADJUSTMENT_UNIFORM_VARIANCE_BEFORE: np.var(raw, axis=1).mean(),
            keys.ADJUSTMENT_UNIFORM_VARIANCE_AFTER: np.var(after, axis=1).mean(),
            # The second group has equal rewards, the third sits at the bounds.
            keys.ADJUSTMENT_FRAC_CHANGED: 1 / 3,
            keys.ADJUSTMENT_EFFECTIVE_WEIGHTS: np.exp(-(weights * np.log(weights)).sum(axis=1)).mean(),
            keys.ADJUSTMENT_RANGE_LOWER: 0.0,
            keys.ADJUSTMENT_RANGE_UPPER: 1.0,
        },
        abs=1e-6,
    )
    assert metrics[keys.ADJUSTMENT_VARIANCE_AFTER] > metrics[keys.ADJUSTMENT_VARIANCE_BEFORE]


def test_a_weight_that_underflows_still_gives_a_finite_entropy():
    rows = [[0.0], [-3000.0], [-3000.0], [-3000.0]]
    metrics = VarianceIncrease(range=FixedRange(0.0, 1.0))(REWARDS[:1], rollout_of_logprobs(rows, 4)).metrics
    assert metrics[keys.ADJUSTMENT_EFFECTIVE_WEIGHTS] == 1.0


def test_the_running_range_is_the_default_and_travels_in_the_checkpoint():
    adjustment = VarianceIncrease(weights=UniformWeights())
    assert isinstance(adjustment.range, RunningRange) and not adjustment.needs_reference
    adjustment(torch.tensor([[-2.0, 6.0]]), rollout_of_logprobs([[0.0], [0.0]], 2))
    resumed = VarianceIncrease(weights=UniformWeights())
    resumed.load_state_dict(adjustment.state_dict())
    metrics = resumed(torch.tensor([[0.0, 1.0]]), rollout_of_logprobs([[0.0], [0.0]], 2)).metrics
    assert (metrics[keys.ADJUSTMENT_RANGE_LOWER], metrics[keys.ADJUSTMENT_RANGE_UPPER]) == (-2.0, 6.0)


def test_clipped_rewards_are_adjusted_from_where_they_were_clipped_to():
    adjustment = VarianceIncrease(UniformWeights(), FixedRange(0.0, 1.0, clip=True))
    rewards = torch.tensor([[-1.0, 0.5, 0.25, 3.0]])
    adjusted, metrics = adjustment(rewards, rollout_of_logprobs([[0.0]] * 4, 4))
    # 0, 0.5, 0.25 and 1 sum to 1.75: 1, 0.75, 0, 0.
    torch.testing.assert_close(adjusted, torch.tensor([[0.0, 0.75, 0.0, 1.0]]))
    assert metrics[keys.ADJUSTMENT_UNIFORM_VARIANCE_BEFORE] == pytest.approx(np.var([0.0, 0.5, 0.25, 1.0]))
    assert rewards.tolist() == [[-1.0, 0.5, 0.25, 3.0]]


def test_a_group_range_keeps_the_extremes_and_splits_ties_when_told():
    rewards = torch.tensor([[0.0, 0.5, 0.5, 1.0]])
    flat = rollout_of_logprobs([[0.0]] * 4, 4)
    merged = VarianceIncrease(UniformWeights(), GroupRange())(rewards, flat).rewards
    split = VarianceIncrease(UniformWeights(), GroupRange(), ties="split")(rewards, flat).rewards
    torch.testing.assert_close(merged, rewards)
    torch.testing.assert_close(split, torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
