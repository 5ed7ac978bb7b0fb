"""What is logged of a rollout, against plain Python, where completions lack a reward or an end token."""

import math
import warnings
from statistics import fmean, stdev

import pytest
import torch
from helpers.advantage_reference import present

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.modules.rollout_metrics import as_floats, pair_agreement, rollout_metrics

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
