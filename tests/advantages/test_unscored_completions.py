"""Completions without a reward, for every advantage."""

import math
import warnings

import numpy as np
import pytest
import torch
from helpers.advantage_reference import group_advantages, leave_one_out_advantages, present
from helpers.two_processes import run_in_two_processes
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning.advantages import Advantage, GroupAdvantage, LeaveOneOutAdvantage

NAN = math.nan
ADVANTAGES = {
    "group": (GroupAdvantage("group"), lambda rewards: group_advantages(rewards, "group")),
    "batch": (GroupAdvantage("batch"), lambda rewards: group_advantages(rewards, "batch")),
    "none": (GroupAdvantage("none"), lambda rewards: group_advantages(rewards, "none")),
    "leave_one_out": (LeaveOneOutAdvantage(), leave_one_out_advantages),
}
# Few different values, so that equal ones are frequent; a third is missing.
reward = st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(-9, 9, width=32), st.just(NAN))
groups = st.integers(2, 7).flatmap(
    lambda size: st.lists(st.lists(reward, min_size=size, max_size=size), min_size=1, max_size=4)
)


@pytest.mark.parametrize("name", ADVANTAGES)
@given(rewards=groups)
@settings(max_examples=150, deadline=None)
def test_advantages_are_those_of_the_formula_over_the_completions_that_have_a_reward(name, rewards):
    advantage, reference = ADVANTAGES[name]
    found = advantage(torch.tensor(rewards, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), reference(rewards), rtol=1e-11, atol=1e-11)
    assert (found[torch.tensor(rewards).isnan()] == 0).all()


@pytest.mark.parametrize("name", ["group", "none", "leave_one_out"])
@given(rewards=groups)
@settings(max_examples=150, deadline=None)
def test_the_others_get_what_they_would_get_in_a_group_without_it(name, rewards):
    advantage, _ = ADVANTAGES[name]
    for group, found in zip(rewards, advantage(torch.tensor(rewards, dtype=torch.float64)), strict=True):
        known = present(group)
        alone = advantage(torch.tensor([known], dtype=torch.float64))[0] if len(known) > 1 else torch.zeros(len(known))
        torch.testing.assert_close(found[~torch.tensor(group).isnan()], alone.double(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "group", [[NAN] * 4, [0.3, NAN, NAN, NAN], [NAN, 0.1, 0.1, 0.1], [0.1, NAN, 0.1, NAN]], ids=str
)
def test_groups_with_fewer_than_two_different_rewards_are_exactly_0(name, dtype, group):
    advantage, _ = ADVANTAGES[name]
    found = advantage(torch.tensor([group, [1.0, 2.0, NAN, 4.0]], dtype=dtype))
    assert found.dtype == dtype
    assert torch.equal(found[0], torch.zeros(4, dtype=dtype))
    assert (found[1, [0, 3]] != 0).all() and found[1, 2] == 0


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("known", [0, 1])
def test_a_batch_with_nothing_to_compare_is_0_without_a_warning(name, known):
    rewards = torch.full((2, 3), NAN)
    rewards[0, :known] = 5.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ADVANTAGES[name][0](rewards), torch.zeros(2, 3))


@pytest.mark.parametrize("name", ADVANTAGES)
@given(rewards=groups, seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_permuting_a_group_permutes_its_advantages_and_a_shift_changes_nothing(name, rewards, seed):
    advantage, _ = ADVANTAGES[name]
    rewards = torch.tensor(rewards, dtype=torch.float64)
    found = advantage(rewards)
    order = torch.randperm(rewards.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(advantage(rewards[:, order]), found[:, order], rtol=1e-9, atol=1e-9)
    # Halves stay exact under the shift, so that no two rewards become equal or unequal.
    halves = (2 * rewards).round() / 2
    torch.testing.assert_close(advantage(halves + 64.0), advantage(halves), rtol=1e-9, atol=1e-9)


def test_what_a_subclass_puts_at_completions_without_a_reward_is_never_read():
    class Broken(Advantage):
        def advantages(self, rewards, scored, lengths):
            return torch.full_like(rewards, 7.0)

    assert Broken()(torch.tensor([[1.0, NAN], [NAN, NAN]])).tolist() == [[7.0, 0.0], [0.0, 0.0]]


def _advantages(rank, folder, rewards):
    torch.save(GroupAdvantage("batch")(rewards[rank]), f"{folder}/{rank}.pt")


@pytest.mark.parametrize("other", [[[5.0, -3.0, NAN]], [[NAN] * 3]], ids=["some", "none"])
def test_two_ranks_scale_by_all_that_either_could_score(tmp_path, other):
    rewards = torch.tensor([[[1.0, 0.0, NAN]], other])
    run_in_two_processes(_advantages, tmp_path, rewards)
    expected = group_advantages(rewards.flatten(0, 1).tolist(), "batch")
    for rank in (0, 1):
        np.testing.assert_allclose(torch.load(tmp_path / f"{rank}.pt")[0].numpy(), expected[rank], rtol=1e-6)
