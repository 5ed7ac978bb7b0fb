"""What is logged of an adjustment, against NumPy."""

import math

import numpy as np
import pytest
import torch
from helpers.rollouts import rollout_of_logprobs

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment import FixedRange, Increase, VarianceIncrease, increase_metrics, increase_variance

REWARDS = torch.tensor([[0.25, 0.5, 0.75, 0.5], [0.125, 0.125, 0.125, 0.125], [0.0, 1.0, 1.0, 0.0]])
LOG_WEIGHTS = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-1.0, -1.0, -2.0, -2.0], [-5.0, -1.0, -2.0, -40.0]]).double()


def increase(rewards=REWARDS, log_weights=LOG_WEIGHTS, lower=0.0, upper=1.0, adjusted=None) -> Increase:
    if adjusted is None:
        adjusted = increase_variance(rewards, log_weights, lower=lower, upper=upper)
    bounds = (torch.full((len(rewards), 1), value) for value in (lower, upper))
    return Increase(rewards, adjusted, log_weights, *bounds)


def centred(rewards):
    return rewards - rewards.mean(dim=1, keepdim=True)


def metrics_of(item: Increase) -> dict[str, float]:
    found = increase_metrics(item, centred(item.rewards), centred(item.adjusted))
    return {name: value.item() for name, value in found.items()}


def test_what_is_logged_is_what_numpy_finds():
    item = increase()
    raw, after = item.rewards.double().numpy(), item.adjusted.double().numpy()
    weights = np.exp(LOG_WEIGHTS.numpy())
    weights /= weights.sum(axis=1, keepdims=True)
    first, second = (values - values.mean(axis=1, keepdims=True) for values in (raw, after))

    def weighted_variance(values):
        return np.mean([np.cov(row, aweights=w, ddof=0) for row, w in zip(values, weights, strict=True)])

    metrics = metrics_of(item)
    assert metrics == pytest.approx(
        {
            keys.ADJUSTMENT_VARIANCE_BEFORE: weighted_variance(raw),
            keys.ADJUSTMENT_VARIANCE_AFTER: weighted_variance(after),
            keys.ADJUSTMENT_UNIFORM_VARIANCE_BEFORE: np.var(raw, axis=1).mean(),
            keys.ADJUSTMENT_UNIFORM_VARIANCE_AFTER: np.var(after, axis=1).mean(),
            # The second group has equal rewards, the third sits at the bounds.
            keys.ADJUSTMENT_FRAC_CHANGED: 1 / 3,
            keys.ADJUSTMENT_FRAC_ZERO_VARIANCE: 1 / 3,
            keys.ADJUSTMENT_EFFECTIVE_WEIGHTS: np.exp(-(weights * np.log(weights)).sum(axis=1)).mean(),
            keys.ADJUSTMENT_RANGE_LOWER: 0.0,
            keys.ADJUSTMENT_RANGE_UPPER: 1.0,
            keys.ADJUSTMENT_ADVANTAGE_COSINE: (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()),
            keys.ADJUSTMENT_SIGN_FLIPS: np.mean(np.sign(first) * np.sign(second) < 0),
            keys.ADJUSTMENT_RESIDUAL_MEAN: 0.0,
            keys.ADJUSTMENT_RESIDUAL_BOUNDS: 0.0,
            keys.ADJUSTMENT_RESIDUAL_ORDER: 0.0,
        },
        abs=1e-6,
    )
    assert metrics[keys.ADJUSTMENT_VARIANCE_AFTER] > metrics[keys.ADJUSTMENT_VARIANCE_BEFORE]


def test_a_weight_that_underflows_still_gives_a_finite_entropy_and_no_variance():
    metrics = metrics_of(increase(REWARDS[:1], torch.tensor([[0.0, -3000.0, -3000.0, -torch.inf]]).double()))
    assert metrics[keys.ADJUSTMENT_EFFECTIVE_WEIGHTS] == 1.0
    assert metrics[keys.ADJUSTMENT_FRAC_ZERO_VARIANCE] == 1.0


def test_each_broken_constraint_shows_in_its_own_residual_as_a_share_of_the_range():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]]).double()
    uniform = torch.zeros(2, 4).double()

    def residuals(second_group):
        adjusted = torch.tensor([[0.0, 1.0, 2.0, 3.0], second_group]).double()
        metrics = metrics_of(increase(rewards, uniform, -1.0, 4.0, adjusted))
        return [
            metrics[key]
            for key in (keys.ADJUSTMENT_RESIDUAL_MEAN, keys.ADJUSTMENT_RESIDUAL_BOUNDS, keys.ADJUSTMENT_RESIDUAL_ORDER)
        ]

    assert residuals([0.0, 1.0, 2.0, 3.0]) == pytest.approx([0.0, 0.0, 0.0])
    assert residuals([0.0, 1.0, 2.0, 3.5]) == pytest.approx([0.125 / 5, 0.0, 0.0])
    assert residuals([0.0, 0.0, 1.0, 5.0]) == pytest.approx([0.0, 1.0 / 5, 0.0])
    assert residuals([-1.5, 2.0, 2.5, 3.0]) == pytest.approx([0.0, 0.5 / 5, 0.0])
    assert residuals([0.5, 0.0, 2.5, 3.0]) == pytest.approx([0.0, 0.0, 0.5 / 5])


def test_a_bound_that_the_dtype_cannot_hold_shows_as_a_residual_of_its_resolution():
    rewards = torch.rand(64, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    metrics = metrics_of(increase(rewards, torch.zeros(64, 8).double()))
    assert 1e-5 < metrics[keys.ADJUSTMENT_RESIDUAL_MEAN] < torch.finfo(torch.bfloat16).eps
    assert metrics[keys.ADJUSTMENT_RESIDUAL_BOUNDS] == metrics[keys.ADJUSTMENT_RESIDUAL_ORDER] == 0.0


def test_advantages_that_stay_the_same_have_cosine_1_also_when_all_are_zero():
    assert metrics_of(increase(REWARDS[1:], LOG_WEIGHTS[1:]))[keys.ADJUSTMENT_ADVANTAGE_COSINE] == 1.0
    assert metrics_of(increase(REWARDS[1:2], LOG_WEIGHTS[1:2]))[keys.ADJUSTMENT_ADVANTAGE_COSINE] == 1.0


def test_sign_flips_count_completions_that_cross_the_mean_but_not_those_that_reach_it():
    item = increase(REWARDS[:1], LOG_WEIGHTS[:1])
    flips = increase_metrics(item, torch.tensor([[1.0, -1.0, 1.0, 1e-30]]), torch.tensor([[1.0, 1.0, 0.0, -1e-30]]))
    assert flips[keys.ADJUSTMENT_SIGN_FLIPS].item() == 0.5


def test_a_group_of_one_has_no_order_to_break():
    metrics = metrics_of(increase(torch.tensor([[0.5]]), torch.zeros(1, 1).double()))
    assert metrics[keys.ADJUSTMENT_RESIDUAL_ORDER] == 0.0


# Completions without a reward.

NAN = float("nan")
GAPS = torch.tensor(
    [
        [0.25, NAN, 0.5, 0.75, 0.5],
        [NAN, NAN, NAN, NAN, NAN],
        [NAN, 0.5, NAN, NAN, NAN],
        [0.3, 0.4, 0.5, 0.6, 0.9],
        [0.5, 0.25, 0.5, NAN, NAN],
    ]
).double()
GAP_WEIGHTS = -3.0 * torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).double()


def without_gaps(row, ties):
    """The variance increase of one group, in a group of those that have a reward, with centred advantages."""
    known = ~GAPS[row].isnan()
    rewards, weights = GAPS[row][known][None], GAP_WEIGHTS[row][known][None]
    adjusted = increase_variance(rewards, weights, lower=0.0, upper=1.0, ties=ties)
    return increase(rewards, weights, adjusted=adjusted), centred(rewards), centred(adjusted)


@pytest.mark.parametrize("ties", ["merge", "split"])
def test_only_completions_with_a_reward_count_and_only_groups_that_have_one(ties):
    adjusted, first, second = GAPS.clone(), torch.zeros(5, 5).double(), torch.zeros(5, 5).double()
    rows = (0, 2, 3, 4)
    parts = {row: without_gaps(row, ties) for row in rows}
    for row, (item, raw, increased) in parts.items():
        known = ~GAPS[row].isnan()
        adjusted[row, known], first[row, known], second[row, known] = item.adjusted[0], raw[0], increased[0]
    # Weights of completions without a reward are whatever they are.
    found = increase_metrics(increase(GAPS, GAP_WEIGHTS, adjusted=adjusted), first, second)
    alone = [increase_metrics(*part) for part in parts.values()]
    sizes = [part[0].rewards.shape[1] for part in parts.values()]

    assert list(found) == list(alone[0])
    for name, value in found.items():
        each = [metrics[name].item() for metrics in alone]
        if "residual" in name:
            expected = max(each)
        elif name == keys.ADJUSTMENT_SIGN_FLIPS:
            expected = np.average(each, weights=sizes)
        elif name == keys.ADJUSTMENT_ADVANTAGE_COSINE:
            a, b = (torch.cat([part[i].flatten() for part in parts.values()]).numpy() for i in (1, 2))
            expected = a @ b / np.sqrt((a @ a) * (b @ b))
        else:
            expected = np.mean(each)
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12), name
    assert found[keys.ADJUSTMENT_FRAC_CHANGED].item() == 3 / 4
    assert found[keys.ADJUSTMENT_FRAC_ZERO_VARIANCE].item() == 1 / 4


def test_a_completion_without_a_reward_hides_no_broken_constraint_and_breaks_none():
    uniform = torch.zeros(1, 5).double()

    def residuals(adjusted, rewards=(NAN, 1.0, 2.0, NAN, 3.0)):
        group = torch.tensor([rewards]).double()
        metrics = metrics_of(increase(group, uniform, -1.0, 4.0, torch.tensor([adjusted]).double()))
        return [
            metrics[key]
            for key in (keys.ADJUSTMENT_RESIDUAL_MEAN, keys.ADJUSTMENT_RESIDUAL_BOUNDS, keys.ADJUSTMENT_RESIDUAL_ORDER)
        ]

    assert residuals([NAN, 1.0, 2.0, NAN, 3.0]) == pytest.approx([0.0, 0.0, 0.0])
    assert residuals([NAN, 1.0, 2.0, NAN, 3.5]) == pytest.approx([0.5 / 3 / 5, 0.0, 0.0])
    assert residuals([NAN, -2.0, 3.0, NAN, 5.0]) == pytest.approx([0.0, 1.0 / 5, 0.0])
    assert residuals([NAN, 2.5, 1.5, NAN, 2.0]) == pytest.approx([0.0, 0.0, 1.0 / 5])
    # The smallest rewards are tied and split, and it stands before them in the group.
    assert residuals([NAN, 2.0, 0.0, NAN, 3.0], (NAN, 1.0, 1.0, NAN, 3.0)) == pytest.approx([0.0, 0.0, 0.0])


def test_a_batch_without_any_reward_has_all_the_names_and_says_nothing():
    gaps = torch.full((2, 3), NAN).double()
    metrics = increase_metrics(
        increase(gaps, torch.zeros(2, 3).double(), adjusted=gaps), torch.zeros(2, 3), torch.zeros(2, 3)
    )
    assert list(metrics) == list(increase_metrics(increase(), centred(REWARDS), centred(REWARDS)))
    residuals = [value.item() for name, value in metrics.items() if "residual" in name]
    assert residuals == [0.0, 0.0, 0.0] and metrics[keys.ADJUSTMENT_ADVANTAGE_COSINE] == 1.0
    others = [v for name, v in metrics.items() if "residual" not in name and name != keys.ADJUSTMENT_ADVANTAGE_COSINE]
    assert all(value.isnan() for value in others)


def test_where_there_are_no_advantages_to_compare_cosine_and_flips_are_no_numbers_and_the_rest_is_as_ever():
    item = increase()
    nothing = torch.full_like(REWARDS, torch.nan)
    for first, second in ((nothing, centred(REWARDS)), (centred(REWARDS), nothing), (nothing, nothing)):
        found = increase_metrics(item, first, second)
        undefined = {name for name, value in found.items() if value.isnan()}
        assert undefined == {keys.ADJUSTMENT_ADVANTAGE_COSINE, keys.ADJUSTMENT_SIGN_FLIPS}


def test_an_adjustment_without_weights_and_range_is_described_by_those_of_a_variance_increase():
    rewards = torch.tensor([[0.0, 1.0, 3.0, 4.0], [NAN, 2.0, 2.0, NAN]])
    adjusted = torch.tensor([[1.0, 1.0, 7.0, -1.0], [NAN, 2.5, 2.0, NAN]])
    rollout = rollout_of_logprobs([[math.log(p)] for p in (0.5, 0.25, 0.125, 0.125, 0.5, 0.5, 0.5, 0.5)], 4)
    found = metrics_of(VarianceIncrease(range=FixedRange(-1.0, 7.0)).describe(adjusted, rewards, rollout))
    first = np.array([0.5, 0.25, 0.125, 0.125]), rewards[0].numpy(), adjusted[0].numpy()
    expected = {
        keys.ADJUSTMENT_VARIANCE_BEFORE: np.cov(first[1], aweights=first[0], ddof=0) / 2,
        keys.ADJUSTMENT_VARIANCE_AFTER: (np.cov(first[2], aweights=first[0], ddof=0) + 0.0625) / 2,
        keys.ADJUSTMENT_UNIFORM_VARIANCE_AFTER: (9.0 + 0.0625) / 2,
        keys.ADJUSTMENT_FRAC_CHANGED: 1.0,
        keys.ADJUSTMENT_FRAC_ZERO_VARIANCE: 0.5,
        keys.ADJUSTMENT_RANGE_LOWER: -1.0,
        keys.ADJUSTMENT_RANGE_UPPER: 7.0,
        keys.ADJUSTMENT_RESIDUAL_MEAN: 0.375 / 8,  # 0.5 + 0 + 4 / 8 - 5 / 8
        keys.ADJUSTMENT_RESIDUAL_BOUNDS: 0.0,
        keys.ADJUSTMENT_RESIDUAL_ORDER: 8.0 / 8,  # the best became the worst
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
