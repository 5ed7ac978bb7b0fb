import numpy as np
import pytest
import torch
from helpers import grpo_reference
from helpers.two_processes import run_in_two_processes
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning.advantages import GroupAdvantage
from grpovi_lightning.errors import UserError

SCALES = ("group", "batch", "none")


@pytest.mark.parametrize("scale_rewards", SCALES)
@given(
    rewards=st.integers(2, 6).flatmap(
        lambda size: st.lists(
            st.lists(st.floats(-9, 9, width=32), min_size=size, max_size=size), min_size=1, max_size=4
        )
    ),
    eps=st.sampled_from([1e-4, 0.5]),
)
@settings(max_examples=80, deadline=None)
def test_advantages_are_those_of_the_formula(scale_rewards, rewards, eps):
    found = GroupAdvantage(scale_rewards, eps)(torch.tensor(rewards))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        found.numpy(), grpo_reference.advantages(rewards, scale_rewards, eps), rtol=2e-6, atol=1e-6
    )


def test_a_hand_worked_group():
    # Mean 2, squared deviations 1, 0, 1, and 2 / (3 - 1) = 1.
    found = GroupAdvantage("group", eps=1e-4)(torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[-1 / 1.0001, 0.0, 1 / 1.0001]]))
    torch.testing.assert_close(
        GroupAdvantage("none")(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-1.0, 0.0, 1.0]])
    )


@pytest.mark.parametrize("scale_rewards", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3, 1e6 + 0.1, 3e-20])
@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_equal_rewards_have_advantages_of_exactly_0(scale_rewards, dtype, value, size):
    rewards = torch.full((2, size), value, dtype=dtype)
    rewards[1, 0] = 2.0
    found = GroupAdvantage(scale_rewards)(rewards)
    assert found.dtype == dtype
    assert torch.equal(found[0], torch.zeros(size, dtype=dtype))
    assert (found[1] != 0).all()


@pytest.mark.parametrize("scale_rewards", SCALES)
def test_a_large_offset_of_all_rewards_changes_nothing(scale_rewards):
    rewards = torch.tensor([[0.0, 0.25, 0.5], [1.0, 1.0, 0.0]])
    advantage = GroupAdvantage(scale_rewards)
    torch.testing.assert_close(advantage(rewards + 2.0**20), advantage(rewards), rtol=1e-6, atol=1e-6)


def test_the_batch_scale_counts_groups_of_equal_rewards():
    rewards = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    expected = 0.5 / (np.std([1.0, 0.0, 0.5, 0.5], ddof=1) + 1e-4)
    torch.testing.assert_close(GroupAdvantage("batch")(rewards)[0], torch.tensor([expected, -expected]).float())


def test_only_the_group_scale_is_standardised():
    assert [GroupAdvantage(scale).standardised for scale in SCALES] == [True, False, False]


def test_the_rewards_are_not_written_to():
    rewards = torch.rand(3, 4)
    copy = rewards.clone()
    for scale in SCALES:
        GroupAdvantage(scale)(rewards)
    assert torch.equal(rewards, copy)


def test_an_unknown_scale_is_refused():
    with pytest.raises(UserError, match="scale_rewards: got 'gruop'"):
        GroupAdvantage("gruop")


@pytest.mark.parametrize("eps", [0.0, -1e-4, float("nan"), float("inf")])
def test_an_eps_that_does_not_keep_equal_rewards_from_0_over_0_is_refused(eps):
    with pytest.raises(UserError, match="advantage eps: got"):
        GroupAdvantage("group", eps)


@pytest.mark.parametrize("shape", [(3, 1), (4,), (2, 2, 2)])
def test_anything_but_groups_of_at_least_two_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[P, G\] with G of at least 2"):
        GroupAdvantage("none")(torch.rand(shape))


def _advantages(rank, folder, rewards):
    torch.save(GroupAdvantage("batch")(rewards[rank]), f"{folder}/{rank}.pt")


def test_two_ranks_scale_by_the_batch_of_both(tmp_path):
    rewards = torch.tensor([[[1.0, 0.0]], [[5.0, -3.0]]])
    run_in_two_processes(_advantages, tmp_path, rewards)
    together = GroupAdvantage("batch")(rewards.flatten(0, 1))
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), together[rank : rank + 1])
