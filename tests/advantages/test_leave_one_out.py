import numpy as np
import pytest
import torch
from helpers.advantage_reference import leave_one_out_advantages
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning.advantages import GroupAdvantage, LeaveOneOutAdvantage

groups = st.integers(2, 9).flatmap(
    lambda size: st.lists(st.lists(st.floats(-9, 9, width=32), min_size=size, max_size=size), min_size=1, max_size=4)
)


@given(rewards=groups)
@settings(max_examples=150, deadline=None)
def test_the_baseline_of_a_completion_is_the_mean_of_the_others(rewards):
    found = LeaveOneOutAdvantage()(torch.tensor(rewards))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), leave_one_out_advantages(rewards), rtol=2e-6, atol=1e-6)


def test_a_hand_worked_group():
    # 6 - (0 + 3) / 2, 0 - (6 + 3) / 2, 3 - (6 + 0) / 2
    assert LeaveOneOutAdvantage()(torch.tensor([[6.0, 0.0, 3.0]])).tolist() == [[4.5, -4.5, 0.0]]


@given(rewards=groups)
@settings(max_examples=80, deadline=None)
def test_it_is_the_centred_reward_times_g_over_g_minus_1(rewards):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    size = rewards.shape[1]
    expected = GroupAdvantage("none")(rewards) * size / (size - 1)
    torch.testing.assert_close(LeaveOneOutAdvantage()(rewards), expected, rtol=1e-14, atol=0.0)


@given(rewards=groups, seed=st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_the_advantages_of_a_group_sum_to_0_and_follow_their_completions(rewards, seed):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    found = LeaveOneOutAdvantage()(rewards)
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(len(rewards)).double(), rtol=0.0, atol=1e-12)
    order = torch.randperm(rewards.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(LeaveOneOutAdvantage()(rewards[:, order]), found[:, order], rtol=1e-12, atol=1e-12)


def test_a_large_offset_of_all_rewards_changes_nothing():
    # In a float32 mean the differences would be lost: numbers near 8 * 2 ** 20 are 1 apart there.
    rewards = torch.tensor([[0.0, 0.25, 0.5, 0.125, 0.75, 0.25, 1.0, 0.375]])
    advantage = LeaveOneOutAdvantage()
    torch.testing.assert_close(advantage(rewards + 2.0**20), advantage(rewards), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3, 1e6 + 0.1, 3e-20])
@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_equal_rewards_have_advantages_of_exactly_0(dtype, value, size):
    rewards = torch.full((2, size), value, dtype=dtype)
    rewards[1, 0] = 2.0
    found = LeaveOneOutAdvantage()(rewards)
    assert found.dtype == dtype
    assert torch.equal(found[0], torch.zeros(size, dtype=dtype))
    assert (found[1] != 0).all()


def test_it_is_not_standardised_and_does_not_write_to_the_rewards():
    rewards = torch.rand(3, 4)
    copy = rewards.clone()
    LeaveOneOutAdvantage()(rewards)
    assert torch.equal(rewards, copy)
    assert not LeaveOneOutAdvantage().standardised


@pytest.mark.parametrize("shape", [(3, 1), (4,), (2, 2, 2)])
def test_anything_but_groups_of_at_least_two_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[P, G\] with G of at least 2"):
        LeaveOneOutAdvantage()(torch.rand(shape))
