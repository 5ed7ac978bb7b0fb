"""What holds for every adjustment of the room, also for one that is only a new file."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.every_class import ADJUSTMENTS
from helpers.rollouts import rollout_of_logprobs
from helpers.two_processes import run_in_two_processes
from torch.nn.functional import pad

from grpovi_lightning import adjustment as room
from grpovi_lightning.adjustment import GroupRange, SigmoidRange, UniformWeights, VarianceIncrease
from grpovi_lightning.advantages import GroupAdvantage

NAN = math.nan
P, G = 6, 5
each = pytest.mark.parametrize("name", ADJUSTMENTS)


def sampled(seed=3):
    """A rollout of P prompts with G completions of several lengths, as sampled with a seed at step 4."""
    generator = torch.Generator().manual_seed(seed)
    rows = [(-3 * torch.rand(1 + row % 4, generator=generator)).tolist() for row in range(P * G)]
    rollout = rollout_of_logprobs(rows, G)
    prompts = replace(rollout.prompts, indices=torch.tensor([7, 3, 900, 1, 0, 12]))
    return replace(rollout, prompts=prompts, step=4, seed=11)


def given(dtype=torch.float64):
    """Rewards [P, G] in [0, 1], some missing, with a group of equal ones and a group without any."""
    rewards = torch.rand(P, G, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rewards[1, 2] = rewards[4, 0] = rewards[4, 3] = NAN
    rewards[2], rewards[5] = 0.3, NAN
    return rewards.to(dtype)


def same(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, equal_nan=True, **{"rtol": 0.0, "atol": 1e-12} | tolerance)


def test_every_adjustment_is_exported_by_the_room():
    assert set(ADJUSTMENTS) <= set(room.__all__)
    assert {"GaussianDithering", "IdentityAdjustment", "Stretch", "Threshold", "VarianceIncrease"} <= set(ADJUSTMENTS)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_missing_rewards_stay_missing_and_what_it_is_given_stays_as_it_is(name, dtype):
    rewards, rollout = given(dtype), sampled()
    copy = rewards.clone()
    found = ADJUSTMENTS[name]()(rewards, rollout).rewards
    assert found.dtype == dtype and torch.equal(found.isnan(), copy.isnan())
    assert torch.equal(rewards.nan_to_num(-1.0), copy.nan_to_num(-1.0))


@each
def test_a_completion_without_a_reward_moves_no_other(name):
    rollout, rewards = sampled(), given()
    rewards[:, -1] = NAN
    narrow = [p * G + g for p in range(P) for g in range(G - 1)]
    without = replace(
        rollout,
        group_size=G - 1,
        **{field: getattr(rollout, field)[narrow] for field in ("completion_ids", "completion_mask", "old_logprobs")},
        truncated=rollout.truncated[narrow],
        texts=["text"] * len(narrow),
        ref_logprobs=rollout.ref_logprobs[narrow],
    )
    found = ADJUSTMENTS[name]()(rewards, rollout).rewards
    same(found[:, :-1], ADJUSTMENTS[name]()(rewards[:, :-1], without).rewards)


@each
def test_more_padding_changes_nothing_whatever_stands_in_it(name):
    rollout, rewards = sampled(), given()
    wider = {field: pad(getattr(rollout, field), (0, 3), value=7) for field in ("completion_ids", "old_logprobs")}
    wider |= {
        "completion_mask": pad(rollout.completion_mask, (0, 3)),
        "ref_logprobs": pad(rollout.ref_logprobs, (0, 3)),
    }
    padded = replace(rollout, **wider)
    padded.ref_logprobs[~padded.completion_mask] = -1e9
    found = ADJUSTMENTS[name]()(rewards, padded).rewards
    assert torch.equal(found.nan_to_num(-9.0), ADJUSTMENTS[name]()(rewards, rollout).rewards.nan_to_num(-9.0))


@each
def test_the_order_of_the_prompts_does_not_matter(name):
    rollout, rewards, order = sampled(), given(), [4, 0, 5, 2, 1, 3]
    found = ADJUSTMENTS[name]()(rewards[order], rollout.select(order)).rewards
    same(found, ADJUSTMENTS[name]()(rewards, rollout).rewards[order])


@each
def test_whether_it_can_change_rewards_is_what_it_says(name):
    adjustment, rewards = ADJUSTMENTS[name](), given()
    found = adjustment(rewards, sampled()).rewards
    assert adjustment.adjusts != torch.equal(found.nan_to_num(-9.0), rewards.nan_to_num(-9.0))


@each
def test_adjusted_rewards_stay_within_the_bounds_that_it_promises(name):
    for known in (None, (0.0, 1.0)):
        adjustment = ADJUSTMENTS[name]()
        bounds = adjustment.bounds(known)
        lowest, highest = (-math.inf, math.inf) if bounds is None else bounds
        found = adjustment(given(), sampled()).rewards
        assert (found[~found.isnan()] >= lowest).all() and (found[~found.isnan()] <= highest).all()


@each
def test_what_it_does_to_standardised_advantages_of_pairs_and_of_groups_is_what_it_says(name):
    adjustment, rollout = ADJUSTMENTS[name](), sampled()
    wide = given().nan_to_num(0.1)
    pairs = replace(
        rollout, prompts=replace(rollout.prompts, contents=["p"] * 15, indices=torch.arange(15)), group_size=2
    )
    # In groups that differ much, the small number that is added to a deviation does not count.
    both = (wide.view(15, 2), pairs, adjustment.changes_pairs), (wide, rollout, not adjustment.only_scales)
    for rewards, of, may_change in both:
        before, after = (GroupAdvantage()(values) for values in (rewards, adjustment(rewards, of).rewards))
        stays = torch.allclose(before, after, atol=0.02)
        assert stays or may_change
        assert stays if adjustment.only_scales or not adjustment.adjusts else True


@each
@pytest.mark.parametrize("range_", [GroupRange(), SigmoidRange(0.0, 1.0)], ids=["group", "sigmoid"])
def test_its_effect_can_be_described(name, range_):
    adjustment, rewards, rollout = ADJUSTMENTS[name](), given(), sampled()
    adjusted = adjustment(rewards, rollout)
    other = VarianceIncrease(UniformWeights(), range_)
    described = adjusted.increase or other.describe(adjusted.rewards, rewards, rollout)
    if adjusted.increase is None:  # whatever range it is described by, the rewards are its own
        assert described.rewards is rewards
        assert not ((rewards < described.lower) | (rewards > described.upper)).any()
    assert described.adjusted is adjusted.rewards and described.lower.shape == described.upper.shape == (P, 1)
    assert (described.lower < described.upper).all() and torch.equal(described.scored, ~rewards.isnan())
    assert (described.log_weights[~described.scored] == -torch.inf).all()


def _on_a_rank(rank, folder, rewards, rollout):
    prompts = list(range(3 * rank, 3 * rank + 3))
    part = rewards[prompts], rollout.select(prompts)
    torch.save({name: make()(*part).rewards for name, make in ADJUSTMENTS.items()}, f"{folder}/{rank}.pt")


def test_two_ranks_adjust_as_one_process_does(tmp_path):
    run_in_two_processes(_on_a_rank, tmp_path, given(), sampled())
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, make in ADJUSTMENTS.items():
        same(torch.cat([found[name] for found in ranks]), make()(given(), sampled()).rewards)
