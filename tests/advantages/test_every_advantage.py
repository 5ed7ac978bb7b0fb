"""What holds for every advantage of the room, also for one that is only a new file."""

import math
import warnings

import pytest
import torch
from helpers.every_class import ADVANTAGES
from helpers.two_processes import run_in_two_processes
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning import advantages
from grpovi_lightning.errors import TrainingError

NAN = math.nan
each = pytest.mark.parametrize("name", ADVANTAGES)
# Rewards that every advantage is defined for, few different ones, so that equal ones are frequent; a fifth is missing.
member = st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0, NAN]), st.integers(1, 40))
batches = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(member, min_size=size, max_size=size), min_size=1, max_size=4)
)


def tensors(batch, dtype=torch.float64):
    """(rewards [P, G], lengths [P, G])."""
    return torch.tensor([[r for r, _ in g] for g in batch], dtype=dtype), torch.tensor(
        [[n for _, n in g] for g in batch]
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_every_advantage_is_exported_by_the_room():
    names = {name.partition("-")[0] for name in ADVANTAGES}
    assert names == {name for name in advantages.__all__ if name.endswith("Advantage") and name != "Advantage"}
    assert {"GroupAdvantage-group", "GroupAdvantage-batch", "GroupAdvantage-none"} <= set(ADVANTAGES)


@each
@given(batch=batches)
@settings(max_examples=25, deadline=None)
def test_completions_without_a_reward_get_exactly_0_and_the_others_what_they_would_get_without_them(name, batch):
    rewards, lengths = tensors(batch)
    advantage, copy = ADVANTAGES[name](), (rewards.clone(), lengths.clone())
    found = advantage(rewards, lengths)
    assert torch.equal(rewards.nan_to_num(-1), copy[0].nan_to_num(-1)) and torch.equal(lengths, copy[1])
    assert found.isfinite().all() and (found[rewards.isnan()] == 0).all()
    more = torch.full_like(rewards[:, :1], NAN), torch.full_like(lengths[:, :1], 99)
    wider = advantage(torch.cat([rewards, more[0]], dim=1), torch.cat([lengths, more[1]], dim=1))
    close(wider[:, :-1], found)
    assert (wider[:, -1] == 0).all()


@each
@given(batch=batches, seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_order_of_prompts_and_of_completions_does_not_matter(name, batch, seed):
    rewards, lengths = tensors(batch)
    generator = torch.Generator().manual_seed(seed)
    prompts, members = (torch.randperm(n, generator=generator) for n in rewards.shape)
    advantage = ADVANTAGES[name]()
    shuffled = advantage(rewards[prompts][:, members], lengths[prompts][:, members])
    close(shuffled, advantage(rewards, lengths)[prompts][:, members])


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_where_no_group_has_different_rewards_all_are_exactly_0_without_a_warning(name, dtype):
    rewards = torch.tensor([[0.1] * 4, [NAN] * 4, [0.3, NAN, NAN, NAN], [NAN, 1.0, 1.0, 1.0], [0.0] * 4], dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ADVANTAGES[name]()(rewards, torch.arange(20).view(5, 4) + 1)
    assert found.dtype == dtype and torch.equal(found, torch.zeros_like(rewards))


@each
def test_a_group_without_different_rewards_has_one_advantage_which_is_0_unless_the_batch_is_shifted(name):
    rewards = torch.tensor([[0.1, 0.1, 0.1], [NAN, 0.7, NAN], [0.0, 1.0, 0.5]])
    found = ADVANTAGES[name]()(rewards, torch.tensor([[1, 2, 3], [4, 5, 6], [7, 1, 1]]))
    same = found[0, 0] if name == "ReinforcePlusPlusAdvantage" else 0.0
    assert (found[0] == same).all() and found[1].tolist() == [0.0, same, 0.0]
    assert (found[2] != 0).any()


@each
def test_whether_the_scale_of_the_rewards_reaches_it_is_what_it_says(name):
    rewards = torch.tensor([[0.4, 0.5, 0.6, 0.5], [0.3, 0.5, 0.4, 0.7], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    lengths = torch.tensor([[1, 2, 3, 4], [5, 1, 1, 1], [2, 2, 2, 3]])
    mean = rewards.mean(dim=1, keepdim=True)
    advantage = ADVANTAGES[name]()
    close_to = [advantage(mean + factor * (rewards - mean), lengths) for factor in (1.0, 1.4)]
    ignored = torch.allclose(*close_to, rtol=1e-3, atol=1e-3)  # but for the small number added to a deviation
    assert ignored == advantage.ignores_scale
    assert advantage.ignores_scale or not advantage.standardised


@each
def test_a_reward_outside_the_domain_is_named_and_one_at_its_ends_is_taken(name):
    advantage = ADVANTAGES[name]()
    lengths = torch.ones(2, 2)
    for end, beyond in zip(advantage.domain, (-0.01, 0.01), strict=True):
        if math.isfinite(end):
            advantage(torch.tensor([[0.5, end], [NAN, 0.5]]), lengths)
            with pytest.raises(TrainingError, match=r"got reward .* for completion 1 of prompt 1, expected rewards"):
                advantage(torch.tensor([[0.5, end], [NAN, end + beyond]]), lengths)
        else:
            advantage(torch.tensor([[0.5, math.copysign(1e6, end)], [NAN, 0.5]]), lengths)


@each
def test_lengths_of_another_shape_are_refused_and_so_is_their_absence_where_they_are_read(name):
    advantage, rewards = ADVANTAGES[name](), torch.tensor([[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"lengths: got shape \[2, 1\], expected that of the rewards, \[1, 2\]"):
        advantage(rewards, torch.ones(2, 1))
    if advantage.needs_lengths:
        with pytest.raises(ValueError, match=r"lengths: got None, expected"):
            advantage(rewards)
    else:
        assert torch.equal(advantage(rewards), advantage(rewards, torch.tensor([[9, 1]])))


def _on_a_rank(rank, folder, rewards, lengths):
    half = slice(2 * rank, 2 * rank + 2)
    found = {name: make()(rewards[half], lengths[half]) for name, make in ADVANTAGES.items()}
    torch.save(found, f"{folder}/{rank}.pt")


def test_two_ranks_have_the_advantages_of_one_process(tmp_path):
    rewards = torch.tensor([[0.2, 1.0, 0.4], [0.0, NAN, 1.0], [NAN, NAN, NAN], [0.5, 0.25, 0.7]], dtype=torch.float64)
    lengths = torch.tensor([[1, 5, 2], [9, 9, 1], [3, 1, 1], [2, 2, 8]])
    run_in_two_processes(_on_a_rank, tmp_path, rewards, lengths)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, make in ADVANTAGES.items():
        close(torch.cat([found[name] for found in ranks]), make()(rewards, lengths))
