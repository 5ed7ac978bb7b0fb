"""What is logged of a rollout, against plain Python, where completions lack a reward or an end token."""

import math
import warnings
from statistics import fmean, stdev

import pytest
import torch
from helpers.advantage_reference import present
from scipy.stats import spearmanr

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.modules.rollout_metrics import (
    as_floats,
    groups_without_variance,
    pair_agreement,
    rollout_metrics,
    variance_shares,
)

NAN = math.nan
REWARDS = [[0.25, NAN, 0.75, 1.0], [NAN, NAN, NAN, NAN], [NAN, 0.5, NAN, NAN], [0.5, NAN, 0.5, 0.5], [2.0, 1.0, 0.0, 3]]


def metrics_of(rewards, components=None, lengths=None, truncated=None):
    rewards = torch.tensor(rewards)
    tokens = torch.tensor(lengths or [1] * rewards.numel()).reshape(rewards.shape)
    cut = torch.tensor(truncated or [False] * rewards.numel()).reshape(rewards.shape)
    parts = {name: torch.tensor(values).reshape(rewards.shape) for name, values in (components or {}).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return as_floats(rollout_metrics(tokens, cut, rewards, parts, torch.zeros_like(rewards)))


def test_reward_statistics_are_over_the_completions_that_have_a_reward():
    found = metrics_of(REWARDS)
    known = [present(group) for group in REWARDS]
    everything = [value for group in known for value in group]
    assert found[keys.REWARD] == pytest.approx(fmean(everything))
    assert found[keys.REWARD_STD] == pytest.approx(fmean(stdev(group) for group in known if len(group) > 1))
    assert found[keys.REWARD_BATCH_STD] == pytest.approx(stdev(everything))
    assert found[keys.FRAC_REWARD_ZERO_STD] == pytest.approx(3 / 5)
    assert found[keys.FRAC_UNSCORABLE] == pytest.approx(9 / 20)


def test_components_are_averaged_over_what_they_scored():
    components = {"maths": [1.0, 0.0, NAN, NAN, 0.5, NAN], "one": [NAN] * 5 + [3.0], "none": [NAN] * 6}
    found = metrics_of([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], components)
    names = [name for part in components for name in (keys.rewards_mean(part), keys.rewards_std(part))]
    assert [found[name] for name in names] == pytest.approx([0.5, 0.5, 3.0, NAN, NAN, NAN], nan_ok=True)


def test_a_batch_without_any_reward_has_the_same_names():
    found = metrics_of([[NAN, NAN], [NAN, NAN]])
    assert list(found) == list(metrics_of([[1.0, 2.0], [3.0, 4.0]]))
    assert math.isnan(found[keys.REWARD]) and found[keys.REWARD_STD] == found[keys.REWARD_BATCH_STD] == 0.0
    assert found[keys.FRAC_REWARD_ZERO_STD] == found[keys.FRAC_UNSCORABLE] == 1.0


def test_lengths_of_completions_with_an_end_token_have_their_own_statistics():
    lengths, cut = [3, 9, 5, 9], [False, True, False, True]
    found = metrics_of([[1.0, 2.0], [3.0, 4.0]], None, lengths, cut)
    assert [found[f"completions/{name}_length"] for name in ("mean", "min", "max")] == [6.5, 3.0, 9.0]
    assert [found[f"completions/{name}_terminated_length"] for name in ("mean", "min", "max")] == [4.0, 3.0, 5.0]

    found = metrics_of([[1.0, 2.0], [3.0, 4.0]], None, lengths, [True] * 4)
    assert [found[f"completions/{name}_terminated_length"] for name in ("mean", "min", "max")] == [0.0, 0.0, 0.0]


def test_agreement_counts_the_pairs_that_both_order_alike_and_ties_of_the_reward_half():
    #          both rise       tie of the observed    tie of the reward    one is not scored
    rewards = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [NAN, 2.0, 1.0]]
    observed = [[0.1, 0.3, 0.2], [0.5, 0.5, 0.9], [0.1, 0.2, 0.0], [0.3, NAN, 0.1]]
    shares = [[1, 1, 0], [1, 1], [0.5, 0, 0], []]
    found = pair_agreement(torch.tensor(rewards), torch.tensor(observed))
    assert found.item() == pytest.approx(fmean(share for group in shares for share in group))
    assert pair_agreement(torch.tensor(rewards), torch.full((4, 3), 0.5)).isnan()


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_a_loop_over_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, observed = (torch.randint(0, 4, (5, 6), generator=generator).float() for _ in range(2))
    shares = [
        0.5 if r[i] == r[j] else float((r[i] > r[j]) == (o[i] > o[j]))
        for r, o in zip(rewards.tolist(), observed.tolist(), strict=True)
        for i in range(6)
        for j in range(i)
        if o[i] != o[j]
    ]
    assert pair_agreement(rewards, observed).item() == pytest.approx(fmean(shares))


# What the diagnoses read.


def grouped(seed, missing):
    """Rewards [5, 6] with many ties, and lengths; some rewards are missing."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 5, (5, 6), generator=generator).float()
    lengths = torch.randint(1, 9, (5, 6), generator=generator)
    return rewards.masked_fill(torch.rand(5, 6, generator=generator) < missing, NAN), lengths


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_the_correlation_of_reward_and_length_is_spearmans(seed, missing):
    rewards, lengths = grouped(seed, missing)
    found = metrics_of(rewards.tolist(), lengths=lengths.flatten().tolist())[keys.LENGTH_REWARD_CORRELATION]
    scored = ~rewards.isnan()
    assert found == pytest.approx(spearmanr(rewards[scored], lengths[scored]).statistic, abs=1e-12)


def test_there_is_no_correlation_with_what_does_not_vary():
    assert metrics_of([[1.0, 2.0, 3.0]])[keys.LENGTH_REWARD_CORRELATION] == 0.0
    assert metrics_of([[1.0, 1.0, 1.0]], lengths=[1, 2, 3])[keys.LENGTH_REWARD_CORRELATION] == 0.0
    assert metrics_of([[NAN, NAN]], lengths=[1, 2])[keys.LENGTH_REWARD_CORRELATION] == 0.0


def test_the_largest_advantage_is_so_on_either_side():
    zeros, false = torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    found = rollout_metrics(zeros, false, zeros, {}, torch.tensor([[-12.0, 3.0]]))
    assert found[keys.ADVANTAGE_ABS_MAX].item() == 12.0


def sides(rewards, lower, upper):
    bounds = [torch.tensor(bound, dtype=torch.float64)[:, None] for bound in (lower, upper)]
    found = groups_without_variance(torch.tensor(rewards), *bounds)
    return found[keys.FRAC_GROUPS_ALL_HIGH].item(), found[keys.FRAC_GROUPS_ALL_LOW].item()


def test_groups_without_variance_are_all_good_above_the_middle_of_the_range_and_all_bad_below():
    #         all good    varies      all bad     all bad       too few
    rewards = [[0.9, 0.9], [0.1, 0.9], [0.0, 0.0], [0.3, 0.3], [1.0, NAN]]
    assert sides(rewards, [0.0] * 5, [1.0] * 5) == pytest.approx((1 / 5, 2 / 5))


def test_without_a_range_the_extremes_of_the_batch_tell_the_sides():
    rewards = [[2.0, 2.0], [2.0, 3.0], [3.0, 3.0], [3.0, 3.0]]
    own = [[group[0] - 1.0 for group in rewards], [group[0] + 1.0 for group in rewards]]  # as `GroupRange` pads them
    assert sides(rewards, *own) == pytest.approx((2 / 4, 1 / 4))
    assert sides([[3.0, 3.0], [3.0, 3.0]], [2.0, 2.0], [4.0, 4.0]) == (0.0, 0.0)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_shares_of_the_variance_are_covariances_within_groups_and_sum_to_one(missing):
    rewards, lengths = grouped(3, missing)
    parts = {"a": 2.0 * rewards, "b": lengths.double()}
    total = parts["a"] + parts["b"]
    found = variance_shares(total, parts)

    covariance, variance = 0.0, 0.0
    for sums, own in zip(total.tolist(), parts["a"].tolist(), strict=True):
        pairs = [(x, y) for x, y in zip(sums, own, strict=True) if not math.isnan(x)]
        means = [fmean(side) for side in zip(*pairs, strict=True)]
        covariance += sum((x - means[0]) * (y - means[1]) for x, y in pairs)
        variance += sum((x - means[0]) ** 2 for x, _ in pairs)
    assert found[keys.rewards_variance_share("a")].item() == pytest.approx(covariance / variance)
    assert sum(found.values()).item() == pytest.approx(1.0)


def test_one_component_has_no_share():
    assert variance_shares(torch.ones(2, 2), {"a": torch.ones(2, 2)}) == {}


def test_a_component_that_does_not_apply_to_a_prompt_adds_nothing_to_the_variance():
    maths, style = torch.tensor([[1.0, 3.0], [NAN, NAN]]), torch.tensor([[0.0, 0.0], [5.0, 7.0]])
    found = variance_shares(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), {"maths": maths, "style": style})
    assert [share.item() for share in found.values()] == [0.5, 0.5]
