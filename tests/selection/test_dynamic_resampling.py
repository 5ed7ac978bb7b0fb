"""Groups that cannot teach, and what takes their places."""

from dataclasses import replace

import pytest
import torch
from helpers.rollouts import rollout_of_logprobs
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.errors import UserError
from grpovi_lightning.selection import DynamicResampling, ScoredRollout
from grpovi_lightning.structures import PromptBatch

NAN = float("nan")


def scored(rewards, first=0, longest=3, n_replaced=0, reference=True):
    """A scored rollout whose every prompt, text and number tells where it comes from; rewards are [P][G].

    Completion lengths go from 1 to `longest` in turn; prompts are numbered from `first`.
    """
    rewards = torch.tensor(rewards)
    n_prompts, size = rewards.shape
    n_rows = n_prompts * size
    rows = [[-(1000.0 * first + 10 * row + t + 1) for t in range(row % longest + 1)] for row in range(n_rows)]
    rollout = rollout_of_logprobs(rows, size)
    mask = rollout.completion_mask
    numbers = range(first, first + n_prompts)
    rollout = replace(
        rollout,
        prompts=PromptBatch([f"p{i}" for i in numbers], torch.tensor(numbers), {"answer": [f"a{i}" for i in numbers]}),
        prompt_ids=torch.tensor(numbers)[:, None] + 500,
        completion_ids=torch.where(mask, rollout.ref_logprobs.neg().long(), 0),
        old_logprobs=torch.where(mask, rollout.ref_logprobs - 0.5, 0.0),
        truncated=torch.arange(n_rows) % 2 == 0,
        texts=[f"text {first} {row}" for row in range(n_rows)],
        ref_logprobs=rollout.ref_logprobs if reference else None,
    )
    components = {"a": rewards.flatten() * 2, "b": torch.arange(n_rows) + 100.0 * first}
    return ScoredRollout(rollout, components, rewards, rollout.lengths.sum(), n_replaced)


def group(found, place):
    """One prompt and its completions as plain values, tokens without padding. NaN is written out."""
    rollout, rows = found.rollout, found.rollout.rows([place]).tolist()
    tokens = [rollout.completion_ids, rollout.old_logprobs, rollout.ref_logprobs]
    return {
        "prompt": (rollout.prompts.texts[place], int(rollout.prompts.indices[place])),
        "column": rollout.prompts.columns["answer"][place],
        "prompt tokens": rollout.prompt_ids[place][rollout.prompt_mask[place]].tolist(),
        "rewards": str(found.rewards[place].tolist()),
        "components": {name: str(values[rows].tolist()) for name, values in found.components.items()},
        "texts": [rollout.texts[row] for row in rows],
        "truncated": rollout.truncated[rows].tolist(),
        "tokens": [
            [None if values is None else values[row][rollout.completion_mask[row]].tolist() for values in tokens]
            for row in rows
        ],
    }


def groups(found):
    return [group(found, place) for place in range(len(found.rewards))]


VARIED, EQUAL = [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("rewards", "equal"),
    [
        ([0.0, 0.0, 0.0], True),
        ([0.0, 0.0, 1e-6], False),
        ([-1.0, -1.0, 2.0], False),
        ([-3.0, -3.0, -3.0], True),
        ([NAN, 2.0, 2.0], True),
        ([NAN, 2.0, 1.0], False),
        ([2.0, NAN, 1.0], False),
        ([NAN, NAN, 1.0], True),
        ([NAN, NAN, -1.0], True),
        ([NAN, NAN, NAN], True),
        ([0.0, -0.0, 0.0], True),
    ],
)
def test_a_group_has_no_variance_if_its_scored_rewards_do_not_differ_or_are_fewer_than_two(rewards, equal):
    assert scored([rewards]).zero_variance_groups() == ([0] if equal else [])


VALUES = st.sampled_from([0.0, 1.0, 2.0, NAN])


@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=6))
def test_groups_without_variance_are_named_by_their_places(rewards):
    kinds = [{value for value in group if value == value} for group in rewards]
    assert scored(rewards).zero_variance_groups() == [p for p, values in enumerate(kinds) if len(values) < 2]


def test_groups_of_one_have_no_variance():
    assert scored([[1.0], [NAN]]).zero_variance_groups() == [0, 1]


def test_selecting_keeps_everything_in_line_and_still_counts_every_token():
    whole = scored([VARIED, EQUAL, [5.0, NAN, 6.0]], n_replaced=1)
    part = whole.select([2, 0])
    assert groups(part) == [group(whole, 2), group(whole, 0)]
    assert int(part.n_tokens) == 18 and part.n_replaced == 1


@st.composite
def two_rollouts(draw):
    """(a scored rollout, a fresh one), some of their groups without variance, with and without padding between them."""
    kinds = st.sampled_from([VARIED, EQUAL, [NAN, 1.0, NAN], [NAN, 1.0, 3.0]])
    first, second = (draw(st.lists(kinds, min_size=1, max_size=5)) for _ in range(2))
    reference = draw(st.booleans())
    return (
        scored(first, longest=draw(st.integers(1, 4)), n_replaced=draw(st.integers(0, 2)), reference=reference),
        scored(second, first=50, longest=draw(st.integers(1, 4)), reference=reference),
    )


@given(two_rollouts())
def test_groups_with_variance_take_the_places_of_others_in_turn_and_nothing_else_changes(both):
    old, fresh = both
    equal = old.zero_variance_groups()
    found = old.replaced(equal, fresh)
    varied = [p for p in range(len(fresh.rewards)) if p not in fresh.zero_variance_groups()]
    expected = groups(old)
    for place, p in zip(equal, varied, strict=False):
        expected[place] = group(fresh, p)
    assert groups(found) == expected
    n_replaced = min(len(equal), len(varied))
    assert found.n_replaced == old.n_replaced + n_replaced
    assert found.zero_variance_groups() == equal[n_replaced:]


@given(two_rollouts())
def test_every_token_that_was_sampled_counts(both):
    old, fresh = both
    expected = int(old.rollout.completion_mask.sum() + fresh.rollout.completion_mask.sum())
    found = old.replaced(old.zero_variance_groups(), fresh)
    assert int(found.n_tokens) == expected and found.n_tokens.shape == old.n_tokens.shape
    assert int(old.n_tokens) + int(fresh.n_tokens) == expected, "the originals keep theirs"


def test_groups_that_stay_are_the_same_to_the_bit():
    old, fresh = scored([[0.1, 0.7, NAN], EQUAL]), scored([VARIED], first=50)
    found = old.replaced([1], fresh)
    assert torch.equal(found.rewards[0].view(torch.int32), old.rewards[0].view(torch.int32))
    for name in ("completion_ids", "completion_mask", "old_logprobs", "ref_logprobs", "truncated"):
        assert torch.equal(getattr(found.rollout, name)[:3], getattr(old.rollout, name)[:3]), name


def test_fewer_groups_with_variance_than_places_fill_the_first():
    old = scored([EQUAL, VARIED, EQUAL, EQUAL])
    found = old.replaced([0, 2, 3], scored([EQUAL, VARIED], first=50))
    assert found.rollout.prompts.indices.tolist() == [51, 1, 2, 3] and found.n_replaced == 1
    assert found.zero_variance_groups() == [2, 3]


def test_more_groups_with_variance_than_places_are_left_over():
    old = scored([VARIED, EQUAL])
    found = old.replaced([1], scored([EQUAL, VARIED, VARIED, VARIED], first=50))
    assert found.rollout.prompts.indices.tolist() == [0, 51] and found.n_replaced == 1
    assert int(found.n_tokens) == 12 + 24


def test_where_no_fresh_group_has_variance_only_the_tokens_grow():
    old = scored([EQUAL, VARIED])
    found = old.replaced([0], scored([EQUAL, [NAN, NAN, 1.0]], first=50))
    assert groups(found) == groups(old) and found.n_replaced == 0 and int(found.n_tokens) == 24


def test_where_all_groups_have_variance_nothing_is_replaced_but_the_tokens_of_the_others_count():
    old = scored([VARIED, VARIED])
    found = old.replaced([], scored([VARIED], first=50))
    assert groups(found) == groups(old) and found.n_replaced == 0 and int(found.n_tokens) == 18


def test_trying_again_continues_with_the_groups_that_still_have_no_variance():
    first = scored([EQUAL, VARIED, EQUAL])
    second = first.replaced(first.zero_variance_groups(), scored([VARIED, EQUAL], first=50))
    third = second.replaced(second.zero_variance_groups(), scored([VARIED], first=80))
    assert third.rollout.prompts.indices.tolist() == [50, 1, 80] and third.zero_variance_groups() == []
    assert third.n_replaced == 2 and int(third.n_tokens) == 18 + 12 + 6


def test_a_longer_group_widens_the_rollout_and_its_leaving_narrows_it():
    short, long = scored([EQUAL, VARIED], longest=1), scored([VARIED], first=50, longest=3)
    assert short.replaced([0], long).rollout.completion_ids.shape == (6, 3)
    assert scored([EQUAL], longest=3).replaced([0], scored([VARIED], longest=1)).rollout.completion_ids.shape == (
        3,
        1,
    )


def test_it_tries_three_times_unless_told():
    assert DynamicResampling().max_tries == 3 and DynamicResampling(1).max_tries == 1


@pytest.mark.parametrize("max_tries", [0, -1])
def test_no_tries_at_all_are_refused_in_one_line(max_tries):
    with pytest.raises(UserError, match=f"dynamic resampling max_tries: got {max_tries}, expected at least 1") as error:
        DynamicResampling(max_tries)
    assert "\n" not in str(error.value)
