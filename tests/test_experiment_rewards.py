"""The reward functions and prompts that experiments bring."""

import importlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from experiments.smollm2.gold import positivity
from grpovi_lightning.adjustment import increase_variance

ROOT = Path(__file__).parents[1] / "experiments"
gsm8k = importlib.import_module("experiments.gsm8k-qwen.rewards")
SOLUTION = "She has 1,000/2=<<1000/2=500>>500 left, then 500-20=<<500-20=480>>480.\n#### 480"


def said(text):
    return [{"role": "assistant", "content": text}]


def test_questions_are_three_hundred_different_short_ones_of_a_user():
    lines = (ROOT / "smollm2" / "questions.jsonl").read_text(encoding="ascii").splitlines()
    (messages,) = zip(*(json.loads(line)["prompt"] for line in lines), strict=True)
    questions = [message["content"] for message in messages]
    assert {tuple(json.loads(line)) for line in lines} == {("prompt",)}
    assert {message["role"] for message in messages} == {"user"}
    assert len(questions) == len({question.casefold() for question in questions}) == 300
    assert max(len(question.split()) for question in questions) < 25


def test_a_completion_is_as_positive_as_its_words():
    friendly, plain, unkind = positivity(
        [said("What a wonderful, happy day!"), said("The table has four legs."), said("A horrible, sad day.")]
    )
    assert -1 <= unkind < 0 == plain < friendly <= 1


@pytest.mark.parametrize(
    ("text", "right", "grade"),
    [
        ("500 left, 480 in the end. #### 480", 1.0, 1.0),
        ("#### 480.00", 1.0, 1.0),
        ("The answer is 480.", 1.0, 1.0),
        ("480? First 500, so #### 500", 0.0, 0.5),
        ("500 are left. #### 520", 0.0, 0.25),
        ("#### 48", 0.0, 0.0),
        ("No idea.", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_an_answer_is_right_or_wrong_and_graded_by_the_results_on_the_way(text, right, grade):
    assert gsm8k.exact([said(text)], [SOLUTION]) == [right]
    assert gsm8k.graded([said(text)], [SOLUTION]) == [grade]


def test_numbers_are_read_with_thousands_signs_and_fractions():
    assert gsm8k.exact([said("1,234.5 dollars"), said("-3")], ["#### 1234.5", "#### -3"]) == [1.0, 1.0]
    assert gsm8k.graded([said("7")], ["No mark here. #### 8"]) == [0.0]


def test_variance_is_increased_under_the_graded_rule_alone():
    texts = ["480", "so 500 and 520", "480", "12", "500", "480 500 0", "no", "500"]
    completions, answers = [said(text) for text in texts], [SOLUTION] * len(texts)
    overlay = yaml.safe_load((ROOT / "gsm8k-qwen" / "variance_increase.yaml").read_text())
    bounds = overlay["model"]["init_args"]["adjustment"]["init_args"]["range"]["init_args"]
    log_weights = torch.linspace(-2.0, 1.0, len(texts))[None]
    for rule, stays in ((gsm8k.exact, True), (gsm8k.graded, False)):
        rewards = torch.tensor([rule(completions, answers)])
        assert bool((increase_variance(rewards, log_weights, **bounds) == rewards).all()) is stays
