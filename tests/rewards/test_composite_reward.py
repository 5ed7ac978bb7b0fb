import math

import numpy as np
import pytest
import torch
from helpers.advantage_reference import total
from helpers.rollouts import rollout_of_logprobs
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import CompositeReward, RewardFunction

ROLLOUT = rollout_of_logprobs([[0.0], [0.0]], group_size=2)


def constant(name, *values):
    return RewardFunction(lambda **_: list(values), name=name)


def test_the_total_is_the_weighted_sum_and_every_part_keeps_its_name():
    reward = CompositeReward([constant("a", 1.0, 2.0), constant("b", 10.0, 20.0)], [0.5, -2.0])
    components = reward.components(ROLLOUT)
    assert {name: score.tolist() for name, score in components.items()} == {"a": [1.0, 2.0], "b": [10.0, 20.0]}
    assert reward.total(components, group_size=2).tolist() == [-19.5, -39.0]


def test_no_weights_weigh_each_part_1():
    reward = CompositeReward([constant("a", 1.0, 2.0), constant("b", 10.0, 20.0)])
    assert reward.weights() == {"a": 1.0, "b": 1.0}
    assert reward.total(reward.components(ROLLOUT), group_size=2).tolist() == [11.0, 22.0]


def test_a_part_of_weight_0_is_observed_but_not_trained_on():
    reward = CompositeReward([constant("proxy", 1.0, 2.0), constant("gold", 5.0, 7.0)], [1.0, 0.0])
    components = reward.components(ROLLOUT)
    assert components["gold"].tolist() == [5.0, 7.0]
    # Not even a value that is none may reach the total through 0 * inf.
    components["gold"] = torch.tensor([float("nan"), float("inf")])
    assert reward.total(components, group_size=2).tolist() == [1.0, 2.0]


def test_composites_nest_and_their_weights_multiply():
    inner = CompositeReward([constant("a", 1.0, 1.0), constant("b", 1.0, 1.0)], [2.0, 3.0])
    reward = CompositeReward([inner, constant("c", 1.0, 1.0)], [0.5, 4.0])
    assert reward.weights() == {"a": 1.0, "b": 1.5, "c": 4.0}
    assert reward.total(reward.components(ROLLOUT), group_size=2).tolist() == [6.5, 6.5]


def test_every_part_is_loaded_and_checked_in_order():
    calls = []

    class Watched(RewardFunction):
        def load(self, policy_tokenizer):
            calls.append((self.name, policy_tokenizer))

        def check(self):
            calls.append((self.name, "check"))

    parts = [Watched(lambda **_: [], name=name) for name in ("a", "b")]
    reward = CompositeReward(parts)
    reward.check()
    reward.load("tokenizer")
    assert calls == [("a", "check"), ("b", "check"), ("a", "tokenizer"), ("b", "tokenizer")]


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        (["a", "b"], [1.0], "got 1 weights for 2 rewards"),
        (["a"], [1.0, 2.0], "got 2 weights for 1 rewards"),
        ([], None, "got 0 weights for 0 rewards"),
        (["a", "a"], None, "two rewards are named 'a'"),
        (["a", "b"], [0.0, 0.0], r"got \[0.0, 0.0\], expected at least one that is not 0"),
    ],
)
def test_parts_and_weights_that_do_not_fit_are_refused(parts, weights, message):
    with pytest.raises(UserError, match=message):
        CompositeReward([constant(name, 1.0) for name in parts], weights)


NAN = math.nan


def totals(components, weights, group_size):
    """The totals of a composite whose parts return `components`."""
    reward = CompositeReward([constant(name, *values) for name, values in components.items()], weights)
    n_rows = len(next(iter(components.values())))
    rollout = rollout_of_logprobs([[0.0]] * n_rows, group_size)
    return reward.total(reward.components(rollout), group_size).tolist()


def test_a_part_that_scores_no_completion_of_a_prompt_adds_nothing_there():
    # Two prompts of two tasks, as with functions that return None for prompts of other tasks; `style` is for both.
    components = {
        "maths": [1.0, 0.0, NAN, NAN],
        "code": [NAN, NAN, 0.5, 0.75],
        "style": [0.1, 0.2, 0.3, 0.4],
    }
    assert totals(components, [1.0, 2.0, 10.0], 2) == pytest.approx([2.0, 2.0, 4.0, 5.5])


def test_a_part_that_scores_only_some_of_a_group_leaves_exactly_the_others_without_a_reward():
    components = {"a": [1.0, NAN, 3.0, 4.0, 5.0, 6.0], "b": [10.0, 20.0, NAN, 40.0, 50.0, 60.0]}
    found = totals(components, None, 3)
    assert found == pytest.approx([11.0, NAN, NAN, 44.0, 55.0, 66.0], nan_ok=True)


def test_a_prompt_to_which_no_part_applies_has_no_reward():
    assert totals({"a": [NAN, NAN, 1.0, 2.0], "b": [NAN, NAN, NAN, NAN]}, None, 2) == pytest.approx(
        [NAN, NAN, 1.0, 2.0], nan_ok=True
    )


def test_what_an_observed_part_cannot_score_has_a_reward_all_the_same():
    assert totals({"proxy": [1.0, 2.0], "gold": [NAN, 7.0]}, [1.0, 0.0], 2) == [1.0, 2.0]
    assert totals({"proxy": [NAN, NAN], "gold": [6.0, 7.0]}, [1.0, 0.0], 2) == pytest.approx([NAN, NAN], nan_ok=True)


def test_in_groups_of_one_a_part_without_a_score_does_not_apply():
    assert totals({"a": [1.0, NAN, NAN], "b": [10.0, 20.0, NAN]}, None, 1) == pytest.approx(
        [11.0, 20.0, NAN], nan_ok=True
    )


score = st.one_of(st.floats(-9, 9, width=32), st.just(NAN))


@given(
    parts=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)).flatmap(
        lambda n: st.tuples(
            st.just(n[1]),
            st.lists(st.lists(score, min_size=n[0] * n[1], max_size=n[0] * n[1]), min_size=n[2], max_size=n[2]),
            st.lists(st.sampled_from([0.0, 1.0, -2.0]), min_size=n[2], max_size=n[2]).filter(any),
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_totals_are_those_of_a_loop_over_prompts(parts):
    group_size, columns, weights = parts
    components = {f"part_{i}": column for i, column in enumerate(columns)}
    expected = total(components, dict(zip(components, weights, strict=True)), group_size)
    np.testing.assert_allclose(totals(components, weights, group_size), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [([1.0, math.inf], [0.0, 0.0]), ([1.0, math.inf], [0.0, -math.inf]), ([0.0, 3e38], [0.0, 3e38])],
)
def test_a_total_that_is_infinite_is_an_error_and_no_completion_without_a_reward(first, second):
    reward = CompositeReward([constant("a", *first), constant("b", *second)])
    components = {"a": torch.tensor(first), "b": torch.tensor(second)}
    with pytest.raises(TrainingError, match=r"reward: got (inf|nan) for completion 1 of prompt 0, expected a finite"):
        reward.total(components, 2)
