import math
import sys

import numpy as np
import pytest
import torch
from helpers.rollouts import rollout_of_words

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards import RewardFunction

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
    with pytest.raises(UserError, match=f"reward function mine {message}"):
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


def test_a_failure_inside_the_function_is_not_disguised(rollout):
    def broken(**_):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        RewardFunction(broken).components(rollout)


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


def test_a_module_that_fails_while_it_is_imported_shows_its_own_error(module):
    module("my_rewards_failing", "import math\nmath.no_such_name\ndef accuracy(**_): return []\n")
    with pytest.raises(AttributeError, match="no_such_name"):
        RewardFunction("my_rewards_failing.accuracy")


@pytest.mark.parametrize(
    "values", [{"a": 1.0, "b": 2.0}, {1.0, 2.0}, "12", b"12"], ids=lambda values: type(values).__name__
)
def test_a_collection_that_is_no_list_of_numbers_is_refused(tiny_tokenizer, values):
    rollout = rollout_of_words(tiny_tokenizer, ["the fox"], [["the dog", "a cat"]])
    with pytest.raises(UserError, match=f"returned {type(values).__name__}, expected a list"):
        RewardFunction(lambda **_: values, name="odd").components(rollout)
