import functools
import json
import math
import sys

import numpy as np
import pytest
import torch
from helpers.rollouts import rollout_of_words

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import CompositeReward, RewardFunction

PROMPTS = ["write about the fox", "write about the red boat"]
GROUPS = [["fox runs", "the fox sleeps ."], ["a boat", "red red boat"]]


@pytest.fixture
def rollout(tiny_tokenizer):
    columns = {"answer": [7, 9], "tags": [["x"], []]}
    return rollout_of_words(tiny_tokenizer, PROMPTS, GROUPS, columns, truncated=[False, False, True, False])


def test_the_function_is_called_once_as_trl_calls_it(rollout, tiny_tokenizer):
    calls = []

    def observed(**arguments):
        calls.append(arguments)
        return [0.5, 1, np.float64(-2.0), torch.tensor(3.0)]

    scores = RewardFunction(observed).components(rollout)
    assert list(scores) == ["observed"] and scores["observed"].dtype == torch.float32
    assert scores["observed"].tolist() == [0.5, 1.0, -2.0, 3.0]
    end, texts = [tiny_tokenizer.eos_token_id], [text for group in GROUPS for text in group]
    ids = [tiny_tokenizer(text)["input_ids"] for text in texts]
    assert calls == [
        {
            "prompts": [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]],
            "completions": texts,
            # Without padding; the end token where there was one.
            "completion_ids": [ids[0] + end, ids[1] + end, ids[2], ids[3] + end],
            "answer": [7, 7, 9, 9],
            "tags": [["x"], ["x"], [], []],
        }
    ]


def test_positional_parameters_of_trls_names_work(rollout):
    def length(prompts, completions, completion_ids, answer, **columns):
        return [len(text.split()) + number for text, number in zip(completions, answer, strict=True)]

    assert RewardFunction(length).components(rollout)["length"].tolist() == [9.0, 11.0, 11.0, 12.0]


@pytest.mark.parametrize("returned", [np.array([1.0, 2.0, 3.0, 4.0]), torch.tensor([1, 2, 3, 4]), (1, 2, 3, 4)])
def test_arrays_tensors_and_tuples_are_lists_of_numbers(rollout, returned):
    assert RewardFunction(lambda **_: returned, name="r").components(rollout)["r"].tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 values, expected 4, one per completion"),
        ([1.0] * 5, "returned 5 values, expected 4"),
        ([], "returned 0 values, expected 4"),
        (None, "returned NoneType, expected a list"),
        (1.0, "returned float, expected a list"),
        ([1.0, "2.0", 3.0, 4.0], "returned '2.0' at position 1, expected a number, or None where"),
        ([1.0, 2.0, 3.0, [4.0]], r"returned \[4.0\] at position 3, expected a number"),
        (torch.ones(4, 2), r"returned tensor\(\[1., 1.\]\) at position 0, expected a number"),
        (
            [1.0, None, math.nan, math.inf],
            "returned inf at position 3, expected a finite float32 number, or None where",
        ),
        ([-math.inf, 2.0, 3.0, 4.0], "returned -inf at position 0, expected a finite"),
        ([1.0, 1e300, 3.0, 4.0], r"returned 1e\+300 at position 1, expected a finite float32"),
        ([1.0, 2.0, 3.0, 10**400], "returned 10+ at position 3, expected a number"),
    ],
)
def test_anything_but_one_finite_number_or_none_a_completion_is_an_error_that_names_it(rollout, returned, message):
    with pytest.raises(TrainingError, match=f"reward function mine {message}"):
        RewardFunction(lambda **_: returned, name="mine").components(rollout)


@pytest.mark.parametrize(
    "returned", [[1.0, None, 0.0, None], [1.0, math.nan, 0.0, None], np.array([1.0, math.nan, 0.0, math.nan])]
)
def test_none_and_nan_stand_for_a_completion_that_cannot_be_scored(rollout, returned):
    scores = RewardFunction(lambda **_: returned, name="mine").components(rollout)["mine"]
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx([1.0, math.nan, 0.0, math.nan], nan_ok=True)


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids"])
def test_a_column_named_like_an_argument_is_an_error_that_says_what_to_do(tiny_tokenizer, name):
    rollout = rollout_of_words(tiny_tokenizer, PROMPTS, GROUPS, {name: [1, 2]})
    with pytest.raises(UserError, match=f"column '{name}' .*`columns`"):
        RewardFunction(lambda **_: [0.0] * 4, name="r").components(rollout)


# What the function takes.


class Scorer:
    def __call__(self, completions, answer):
        return answer


def by_hand(function):
    """A wrapper with a signature of its own."""

    @functools.wraps(function)
    def wrapper(completions, answer):
        return [function(text) for text in completions] and answer

    return wrapper


TAKES = {
    "TRL's three and a column": lambda prompts, completions, completion_ids, answer: answer,
    "one column": lambda answer: answer,
    "by name alone": lambda *, answer, completions: answer,
    "by place alone": lambda completions, answer, /: answer,
    "by place and the rest": lambda answer, /, **rest: answer if rest["tags"] else [],
    "a default": lambda completions, answer=None, difficulty=3: answer if difficulty == 3 else [],
    "a default by place": lambda answer, difficulty=3, /: answer if difficulty == 3 else [],
    "a default that nothing gives, before one that is given": lambda completions, mine=1, /, answer=None: answer,
    "partial": functools.partial(lambda threshold, completions, answer: answer, 0.5),
    "partial by name": functools.partial(lambda completions, answer, threshold: answer, threshold=0.5),
    "an object": Scorer(),
    "a method": Scorer().__call__,
    "a wrapper that hands on": torch.no_grad()(lambda completions, answer: answer),
    "a wrapper of its own": by_hand(lambda text: 1.0),
    "everything": lambda **columns: columns["answer"],
}


@pytest.mark.parametrize("name", TAKES)
def test_a_function_gets_the_arguments_that_it_takes(rollout, name):
    reward = RewardFunction(TAKES[name], name="f")
    reward.check_columns({"train": ["answer", "tags"]})
    assert reward.components(rollout)["f"].tolist() == [7, 7, 9, 9]


NEEDS = {
    "a column": lambda prompts, completions, completion_ids, difficulty: [],
    "beside the rest": lambda difficulty, **columns: [],
    "by name alone": lambda *, difficulty: [],
    "by place alone": lambda difficulty, /: [],
    "partial": functools.partial(lambda threshold, difficulty: [], 0.5),
    "an object": type("Scorer", (), {"__call__": lambda self, difficulty: []})(),
    "a wrapper that hands on": torch.no_grad()(lambda difficulty: []),
    "a built-in wrapper": functools.lru_cache(lambda difficulty: []),
}


@pytest.mark.parametrize("name", NEEDS)
def test_an_argument_that_no_column_gives_is_refused_before_the_function_is_called(rollout, name):
    reward = RewardFunction(NEEDS[name], name="mine")
    expected = (
        "reward function mine needs the argument 'difficulty', but the columns of the validation table are answer;"
    )
    for whole in (reward, CompositeReward([RewardFunction(lambda **_: [], name="other"), CompositeReward([reward])])):
        with pytest.raises(UserError, match=expected):
            whole.check_columns({"train": ["difficulty"], "validation": ["answer"]})
        whole.check_columns({"train": ["difficulty", "other"]})
    with pytest.raises(
        UserError, match="needs the argument 'difficulty', but the columns of the prompts are answer, tags"
    ):
        reward.components(rollout)


def test_without_columns_there_are_none():
    with pytest.raises(UserError, match="the columns of the train table are none"):
        RewardFunction(lambda answer: []).check_columns({"train": []})


@pytest.mark.parametrize("function", [len, math.sqrt])
def test_a_built_in_function_of_other_arguments_is_refused(function):
    with pytest.raises(UserError, match=f"reward function {function.__name__} needs the argument '[a-z]+'"):
        RewardFunction(function).check_columns({"train": []})


def test_a_built_in_function_whose_arguments_python_does_not_know_gets_all(rollout):
    RewardFunction(dict, name="dict").check_columns({"train": ["answer"]})
    with pytest.raises(TrainingError, match="dict returned dict"):
        RewardFunction(dict, name="dict").components(rollout)


# A function that fails.


def broken(**_):
    raise ZeroDivisionError("mine\nand more")


def broken_in_a_library(**_):
    json.loads("x")


def broken_without_a_word(**_):
    raise RuntimeError


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (broken, r"broken raised ZeroDivisionError: mine and more \(.*test_reward_functions.py, line \d+\)"),
        (
            broken_in_a_library,
            r"broken_in_a_library raised JSONDecodeError: .* \(.*test_reward_functions.py, line \d+\)",
        ),
        (broken_without_a_word, r"broken_without_a_word raised RuntimeError \(.*test_reward_functions.py"),
        (functools.partial(broken), "partial raised ZeroDivisionError"),
    ],
)
def test_an_error_in_the_function_is_one_line_with_its_place_and_the_prompts(rollout, function, message):
    with pytest.raises(TrainingError, match=f"reward function {message}.*; rows of step 0: 0, 1") as error:
        RewardFunction(function).components(rollout)
    assert "\n" not in str(error.value) and error.value.__cause__ is not None


def test_an_interruption_passes_through(rollout):
    def interrupted(**_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RewardFunction(interrupted).components(rollout)


def test_the_name_is_the_functions_the_classes_or_the_given_one():
    class Callable:
        def __call__(self, **_):
            return []

    assert RewardFunction(math.sqrt).weights() == {"sqrt": 1.0}
    assert RewardFunction(Callable()).weights() == {"Callable": 1.0}
    assert RewardFunction(math.sqrt, name="root").weights() == {"root": 1.0}


@pytest.fixture
def module(tmp_path, monkeypatch):
    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_an_import_path_finds_the_function(rollout, module):
    module("my_rewards_found", "def constant(completions, **_):\n    return [2.5] * len(completions)\n")
    assert RewardFunction("my_rewards_found.constant").components(rollout)["constant"].tolist() == [2.5] * 4


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("accuracy", "got 'accuracy', expected an import path such as my_rewards.accuracy"),
        ("no_such_module_here.accuracy", "no module named 'no_such_module_here'; run in the folder that holds it"),
        ("math.no_such_name", "module math has no 'no_such_name'"),
        ("math.pi", "got a float, expected a function"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_an_error_that_says_where_it_ends(path, message):
    with pytest.raises(UserError, match=message):
        RewardFunction(path)


def test_a_module_that_fails_to_import_another_names_that_other(module):
    module("my_rewards_broken", "import no_such_dependency\n")
    with pytest.raises(UserError, match="no module named 'no_such_dependency'"):
        RewardFunction("my_rewards_broken.accuracy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import math\nmath.no_such_name\n", r"AttributeError: .*no_such_name'.* \(.*my_rewards_failing.py, line 2\)"),
        ("\n\nfoo = bar\n", r"NameError: name 'bar' is not defined \(.*my_rewards_failing.py, line 3\)"),
        ("\ndef accuracy(:\n", r"SyntaxError: invalid syntax \(my_rewards_failing.py, line 2\)"),
        ("from math import nothing\n", r"ImportError: cannot import name 'nothing' .*my_rewards_failing.py, line 1\)"),
        ("import json\njson.loads('x')\n", r"JSONDecodeError: .*my_rewards_failing.py, line 2\)"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(.*my_rewards_failing.py, line 2\)"),
    ],
)
def test_a_module_that_fails_while_it_is_imported_is_one_line_with_its_place(module, text, message):
    module("my_rewards_failing", text + "def accuracy(**_): return []\n")
    expected = f"my_rewards_failing.accuracy: module my_rewards_failing cannot be imported: {message}"
    with pytest.raises(UserError, match=expected) as error:
        RewardFunction("my_rewards_failing.accuracy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [{"a": 1.0, "b": 2.0}, {1.0, 2.0}, "12", b"12"], ids=lambda values: type(values).__name__
)
def test_a_collection_that_is_no_list_of_numbers_is_refused(tiny_tokenizer, values):
    rollout = rollout_of_words(tiny_tokenizer, ["the fox"], [["the dog", "a cat"]])
    with pytest.raises(TrainingError, match=f"returned {type(values).__name__}, expected a list"):
        RewardFunction(lambda **_: values, name="odd").components(rollout)
