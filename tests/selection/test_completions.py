"""Which completions of a group are kept."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from selection.scripted import NAN, scored_of

from grpovi_lightning import selection
from grpovi_lightning.errors import UserError
from grpovi_lightning.selection import (
    CompletionSelection,
    EveryCompletion,
    MaxVarianceSelection,
    RandomSelection,
    TopSelection,
)

KINDS = [
    kind
    for kind in map(selection.__dict__.get, selection.__all__)
    if issubclass(kind, CompletionSelection) and kind not in (CompletionSelection, EveryCompletion)
]
"""Every selection of completions that has a size; a new one is tested without being listed."""


def chosen(kind, rewards, m, seed=1, step=0, numbers=None):
    """The kept places of each group, ascending."""
    scored = scored_of(rewards, numbers, step)
    return kind(m).choose(scored.rewards.double(), scored.rollout, seed).sort(dim=1).values.tolist()


def variance(values):
    """Population variance, exact."""
    values = [Fraction(value) for value in values]
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


TIED = st.sampled_from([0.0, 1.0, 0.5, -2.0])
REWARDS = st.lists(TIED, min_size=2, max_size=8) | st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=8)


@given(REWARDS, st.data())
def test_no_other_completions_have_a_larger_variance(rewards, data):
    m = data.draw(st.integers(2, len(rewards)))
    (places,) = chosen(MaxVarianceSelection, [rewards], m)
    best = max(variance(each) for each in combinations(rewards, m))
    assert math.isclose(variance([rewards[place] for place in places]), best, rel_tol=1e-12, abs_tol=1e-30)


@given(REWARDS, st.data())
def test_the_kept_are_the_largest_and_the_smallest(rewards, data):
    m = data.draw(st.integers(2, len(rewards)))
    kept = sorted(rewards[place] for place in chosen(MaxVarianceSelection, [rewards], m)[0])
    ordered = sorted(rewards)
    assert any(kept == ordered[: m - k] + ordered[len(ordered) - k :] for k in range(m + 1))


@pytest.mark.parametrize(
    ("rewards", "m", "expected"),
    [
        ([0.5, 0.9, 0.1, 0.4, 1.0], 2, [2, 4]),
        ([0.0, 1.0, 0.0, 0.0, 1.0], 4, [0, 1, 2, 4]),  # as many successes as failures
        ([0.0, 1.0, 0.0, 0.0, 1.0], 3, [0, 1, 4]),  # two of either kind would do as well: more of the largest
        ([1.0, 1.0, 1.0, 0.0], 2, [0, 3]),  # of equal rewards the first
        ([0.1, 0.1, 0.1, 0.1], 3, [0, 1, 2]),  # no variance: the first
        ([NAN, 1.0, 5.0, 3.0], 2, [1, 2]),
        ([NAN, 1.0, NAN, 3.0], 3, [0, 1, 3]),  # fewer have a reward than are kept
        ([NAN, NAN, NAN, 3.0], 2, [0, 3]),
        ([NAN, NAN, NAN, NAN], 2, [0, 1]),
        ([-5.0, -1.0, -3.0], 2, [0, 1]),
        ([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 1], 2, [0, 2]),  # differences that are small beside the rewards
    ],
)
def test_groups_with_ties_missing_rewards_and_offsets(rewards, m, expected):
    assert chosen(MaxVarianceSelection, [rewards], m) == [expected]


def test_the_top_are_the_largest_and_of_equal_rewards_the_first():
    rewards = [[0.2, 0.9, 0.5, 0.9], [1.0, 1.0, 1.0, 1.0], [NAN, -1.0, NAN, -2.0]]
    assert chosen(TopSelection, rewards, 2) == [[1, 3], [0, 1], [1, 3]]


def test_every_set_is_kept_at_random_as_often_as_another():
    n = 6000
    found = Counter(map(tuple, chosen(RandomSelection, [[1.0, 2.0, 3.0, 4.0]] * n, 2)))
    assert len(found) == 6
    chi_squared = sum((count - n / 6) ** 2 / (n / 6) for count in found.values())
    assert chi_squared < 20.5  # the 99.9 % point for 5 degrees of freedom


def test_a_choice_at_random_differs_by_seed_step_and_prompt_and_by_nothing_else():
    rewards = [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 20
    first = chosen(RandomSelection, rewards, 3)
    assert chosen(RandomSelection, [[0.0] * 6] * 20, 3) == first
    assert chosen(RandomSelection, rewards, 3, seed=2) != first != chosen(RandomSelection, rewards, 3, step=1)
    assert chosen(RandomSelection, rewards[:2], 3, numbers=[7, 3]) == [first[7], first[3]]


# What every selection of completions keeps to.

GROUP = st.lists(TIED | st.just(NAN), min_size=5, max_size=5)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(GROUP, min_size=1, max_size=4), st.integers(2, 5))
def test_m_different_ones_are_kept_in_order_and_with_a_reward_where_there_are_as_many(kind, rewards, m):
    kept = kind(m)(scored_of(rewards), seed=3)
    assert kept.rollout.group_size == m and kept.rewards.shape == (len(rewards), m)
    for p, group in enumerate(rewards):
        texts = kept.rollout.texts[p * m : (p + 1) * m]
        places = [int(text.split()[1]) for text in texts]
        assert texts == [f"{p} {place}" for place in sorted(set(places))]
        n_scored = sum(not math.isnan(value) for value in group)
        assert int((~kept.rewards[p].isnan()).sum()) == min(m, n_scored)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_is_selected_from_by_itself(kind):
    rewards = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).tolist()
    whole = chosen(kind, rewards, 3)
    assert [chosen(kind, [rewards[p]], 3, numbers=[p])[0] for p in range(6)] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_stays_in_line(kind):
    rewards = [[0.3, 0.1, NAN, 0.9], [0.5, 0.2, 0.2, 0.7]]
    whole = scored_of(rewards)
    kept = kind(2)(whole, seed=5)
    rows = [4 * int(p) + int(g) for p, g in map(str.split, kept.rollout.texts)]
    assert torch.equal(kept.rewards.flatten(), whole.rewards.flatten()[rows])
    assert torch.equal(kept.components["a"], whole.components["a"][rows])
    assert kept.rollout.lengths.tolist() == [row % 4 + 1 for row in rows]
    assert int(kept.n_tokens) == int(whole.n_tokens) == 20, "all tokens that were sampled count"
    length = kept.rollout.completion_ids.shape[1]
    assert length == max(row % 4 + 1 for row in rows), "no padding that only the others needed"
    for name in ("completion_mask", "ref_logprobs", "old_logprobs"):
        assert torch.equal(getattr(kept.rollout, name), getattr(whole.rollout, name)[rows, :length])


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_as_there_are_is_every_one_as_it_is(kind):
    whole = scored_of([[0.3, NAN, 0.1], [NAN, NAN, NAN], [1.0, 1.0, 1.0]])
    kept, every = kind(3)(whole, seed=5), EveryCompletion()(whole, seed=5)
    assert every is whole
    assert str(kept.rewards) == str(whole.rewards) and kept.rollout.texts == whole.rollout.texts
    for name in ("completion_ids", "completion_mask", "ref_logprobs", "old_logprobs", "truncated"):
        assert torch.equal(getattr(kept.rollout, name), getattr(whole.rollout, name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 0, -3])
def test_fewer_than_two_are_refused(kind, m):
    with pytest.raises(UserError, match=f"{kind.__name__} keep: got {m}, expected at least 2") as error:
        kind(m)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_are_is_refused(kind):
    with pytest.raises(UserError, match=f"{kind.__name__} keep: got 5, expected at most group_size 4") as error:
        kind(5).size(4)
    assert "\n" not in str(error.value)
    assert kind(4).size(4) == 4 and kind(2).size(4) == 2 and EveryCompletion().size(4) == 4
