import pytest
import torch
from helpers.rollouts import rollout_of_logprobs

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards import CompositeReward, RewardFunction

ROLLOUT = rollout_of_logprobs([[0.0], [0.0]], group_size=2)


def constant(name, *values):
    return RewardFunction(lambda **_: list(values), name=name)


def test_the_total_is_the_weighted_sum_and_every_part_keeps_its_name():
    reward = CompositeReward([constant("a", 1.0, 2.0), constant("b", 10.0, 20.0)], [0.5, -2.0])
    components = reward.components(ROLLOUT)
    assert {name: score.tolist() for name, score in components.items()} == {"a": [1.0, 2.0], "b": [10.0, 20.0]}
    assert reward.total(components).tolist() == [-19.5, -39.0]


def test_no_weights_weigh_each_part_1():
    reward = CompositeReward([constant("a", 1.0, 2.0), constant("b", 10.0, 20.0)])
    assert reward.weights() == {"a": 1.0, "b": 1.0}
    assert reward.total(reward.components(ROLLOUT)).tolist() == [11.0, 22.0]


def test_a_part_of_weight_0_is_observed_but_not_trained_on():
    reward = CompositeReward([constant("proxy", 1.0, 2.0), constant("gold", 5.0, 7.0)], [1.0, 0.0])
    components = reward.components(ROLLOUT)
    assert components["gold"].tolist() == [5.0, 7.0]
    # Not even a value that is none may reach the total through 0 * inf.
    components["gold"] = torch.tensor([float("nan"), float("inf")])
    assert reward.total(components).tolist() == [1.0, 2.0]


def test_composites_nest_and_their_weights_multiply():
    inner = CompositeReward([constant("a", 1.0, 1.0), constant("b", 1.0, 1.0)], [2.0, 3.0])
    reward = CompositeReward([inner, constant("c", 1.0, 1.0)], [0.5, 4.0])
    assert reward.weights() == {"a": 1.0, "b": 1.5, "c": 4.0}
    assert reward.total(reward.components(ROLLOUT)).tolist() == [6.5, 6.5]


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
