"""Reward functions with settings of their own, made by factories, and with the arguments that TRL adds."""

import functools
import sys

import pytest
from helpers.rollouts import rollout_of_words

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import CompositeReward, RewardFunction
from grpovi_lightning.structures import RunProgress

GROUPS = [["fox runs", "the fox sleeps ."], ["a boat", "red red boat"]]


@pytest.fixture
def rollout(tiny_tokenizer):
    return rollout_of_words(tiny_tokenizer, ["the fox", "the boat"], GROUPS, {"answer": [7, 9]})


def above(completions, threshold, scale=1.0):
    return [scale * (len(text.split()) > threshold) for text in completions]


def above_of_all(completions, threshold, **columns):
    return [score * (n > 0) for score, n in zip(above(completions, threshold), columns["answer"], strict=True)]


def above_by_place(completions, /, threshold):
    return above(completions, threshold)


class Above:
    def __call__(self, completions, *, threshold):
        return above(completions, threshold)


FUNCTIONS = {
    "by name": above,
    "beside columns": above_of_all,
    "behind one by place": above_by_place,
    "an object": Above(),
    "partial": functools.partial(above, scale=1.0),
}


# Settings.


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("threshold", "expected"), [(1, [1, 1, 1, 1]), (2, [0, 1, 0, 1]), (3, [0, 1, 0, 0])])
def test_a_function_gets_its_settings_beside_what_a_rollout_gives(rollout, name, threshold, expected):
    reward = RewardFunction(FUNCTIONS[name], name="above", kwargs={"threshold": threshold})
    reward.check_columns({"train": ["answer"]})
    assert reward.components(rollout)["above"].tolist() == expected


def test_without_its_setting_a_function_is_refused_with_where_to_give_it():
    with pytest.raises(UserError, match=r"above needs the argument 'threshold', but .*; .*give it in `kwargs`"):
        RewardFunction(above).check_columns({"train": ["answer"]})


def by_place(completions, threshold, /):
    return []


WRONG = {
    "misspelt": (above, "threshhold", "which it does not take by name, expected some of threshold, scale;"),
    "by place alone": (by_place, "threshold", "which it does not take by name, expected some of none;"),
    "prompts": (above_of_all, "prompts", "which every reward function gets by itself; leave it out"),
    "completions": (above, "completions", "which every reward function gets by itself; leave it out"),
    "completion_ids": (above_of_all, "completion_ids", "which every reward function gets by itself; leave it out"),
    "trainer_state": (above_of_all, "trainer_state", "which every reward function gets by itself; leave it out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_setting_that_cannot_reach_the_function_is_refused_at_once(name):
    function, argument, message = WRONG[name]
    with pytest.raises(UserError, match=f"^reward function mine: kwargs has '{argument}', {message}"):
        RewardFunction(function, name="mine", kwargs={argument: 1})


@pytest.mark.parametrize("function", [above, above_of_all])
def test_a_setting_with_the_name_of_a_column_is_refused(rollout, function):
    reward = RewardFunction(lambda completions, answer, threshold=2: [], name="mine", kwargs={"answer": 1})
    message = "reward function mine: kwargs has 'answer', which is also a column of the"
    with pytest.raises(UserError, match=f"{message} validation table"):
        reward.check_columns({"train": ["solution"], "validation": ["answer"]})
    with pytest.raises(UserError, match=f"{message} prompts"):
        reward.components(rollout)


# Factories.


FACTORIES = """
def longer_than(threshold, scale=1.0):
    def longer(completions, answer, **columns):
        return [scale * (len(text.split()) > threshold) for text in completions]
    return longer

def broken(threshold):
    raise ValueError("threshold should be\\npositive")

def number(threshold):
    return threshold
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "my_reward_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_reward_factories", raising=False)
    return "my_reward_factories"


def test_a_factory_makes_the_function_from_the_settings(rollout, factories):
    reward = RewardFunction(factory=f"{factories}.longer_than", kwargs={"threshold": 2, "scale": 0.5})
    assert reward.components(rollout)["longer"].tolist() == [0.0, 0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("longer_than", {}, r"longer_than raised TypeError: .*missing 1 required positional argument: 'threshold'"),
        ("longer_than", None, r"longer_than raised TypeError: .*'threshold'"),
        ("longer_than", {"treshold": 2}, "longer_than: kwargs has 'treshold', which it does not take by name"),
        ("broken", {"threshold": 2}, r"broken raised ValueError: threshold should be positive \(.*, line 8\); look at"),
        ("number", {"threshold": 2}, "number: got a int from it, expected a reward function; .*name it as `function`"),
        ("absent", {}, "module my_reward_factories has no 'absent'"),
    ],
)
def test_a_factory_that_makes_no_function_is_one_line(factories, name, kwargs, message):
    with pytest.raises(UserError, match=message) as error:
        RewardFunction(factory=f"{factories}.{name}", kwargs=kwargs)
    assert "\n" not in str(error.value)


def test_a_factory_that_was_named_as_the_function_is_recognised(rollout, factories):
    reward = RewardFunction(f"{factories}.longer_than", kwargs={"threshold": 2})
    with pytest.raises(UserError, match=r"longer_than takes none of prompts, .*answer, .*name it as `factory`"):
        reward.check_columns({"train": ["answer"]})

    def factory(**settings):
        return above

    with pytest.raises(TrainingError, match=r"factory returned function, expected a list; if it made .* as `factory`"):
        RewardFunction(factory).components(rollout)


@pytest.mark.parametrize("given", [{}, {"function": above, "factory": "a.b"}], ids=["neither", "both"])
def test_either_a_function_or_a_factory_is_named(given):
    with pytest.raises(UserError, match=r"reward function: got function .* and factory .*, expected one of the two"):
        RewardFunction(**given)


# What TRL gives beside the columns.

PROGRESS = RunProgress(step=2, global_step=4, max_steps=10, epoch=0.5)


def by_state(completions, trainer_state):
    return [trainer_state.global_step / trainer_state.max_steps + trainer_state.epoch] * len(completions)


def by_state_of_all(trainer_state, **columns):
    return by_state(columns["completions"], trainer_state)


@pytest.mark.parametrize("function", [by_state, by_state_of_all, lambda trainer_state, /, **c: [0.9] * 4])
def test_a_function_that_names_the_state_gets_it(rollout, function):
    reward = RewardFunction(function, name="f")
    reward.check_columns({"train": []})
    object.__setattr__(rollout, "progress", PROGRESS)
    assert reward.components(rollout)["f"].tolist() == pytest.approx([0.9] * 4)


def test_a_function_that_takes_all_columns_gets_no_state_among_them(rollout):
    object.__setattr__(rollout, "progress", PROGRESS)
    seen = []
    RewardFunction(lambda **columns: seen.append(set(columns)) or [0.0] * 4, name="f").components(rollout)
    assert seen == [{"prompts", "completions", "completion_ids", "answer"}]


@pytest.mark.parametrize("argument", ["log_extra", "log_metric"])
def test_what_only_trls_trainer_can_log_is_refused_unless_it_has_a_default(rollout, argument):
    needs, can = {}, {}
    exec(f"def f(completions, {argument}, **columns): return [1.0] * 4", needs)
    exec(f"def f(completions, {argument}=None, **columns): return [float({argument} is None)] * 4", can)
    with pytest.raises(UserError, match=f"f needs the argument '{argument}', which TRL's trainer gives and this one"):
        RewardFunction(needs["f"]).check_columns({"train": []})
    assert RewardFunction(can["f"]).components(rollout)["f"].tolist() == [1.0] * 4


def test_parts_of_a_sum_have_settings_of_their_own(rollout):
    parts = [RewardFunction(above, f"above {n}", {"threshold": n}) for n in (1, 3)]
    components = CompositeReward(list(parts)).components(rollout)
    assert {name: scores.tolist() for name, scores in components.items()} == {
        "above 1": [1.0, 1.0, 1.0, 1.0],
        "above 3": [0.0, 1.0, 0.0, 0.0],
    }
