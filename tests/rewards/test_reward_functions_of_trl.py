"""Reward functions of TRL, called as they are."""

from dataclasses import replace

import pytest
from helpers.rollouts import rollout_of_words

from grpovi_lightning.conversations import Conversation
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards import CompositeReward, RewardFunction

ANSWERS = [
    r"<think>A third.</think> \boxed{\frac{1}{3}}",
    r"<think>A half.</think> \boxed{0.5}",
    r"Twelve: \boxed{12}",
    "<think>I do not know.",
]
SOLUTIONS = [r"\frac{2}{6}", "no number at all"]


@pytest.fixture
def text(tiny_tokenizer):
    """Completions of 3, 5, 7 and 9 tokens that say `ANSWERS`: two for each of two prompts."""
    groups = [[" ".join(["fox"] * length) for length in lengths] for lengths in ((2, 4), (6, 8))]
    words = rollout_of_words(tiny_tokenizer, ["a third?", "how many?"], groups, {"solution": SOLUTIONS})
    return replace(words, texts=ANSWERS)


@pytest.fixture
def rollout(text):
    """The same, where the prompts are conversations."""
    conversations = [Conversation([{"role": "user", "content": prompt}]) for prompt in text.prompts.texts]
    return replace(text, prompts=replace(text.prompts, contents=conversations))


def test_accuracy_compares_with_the_solution_column(rollout):
    scores = RewardFunction("trl.rewards.accuracy_reward").components(rollout)["accuracy_reward"].tolist()
    assert scores == pytest.approx([1.0, 0.0, float("nan"), float("nan")], nan_ok=True)


def test_without_a_solution_column_it_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="accuracy_reward needs the argument 'solution', but the columns of the train"):
        RewardFunction("trl.rewards.accuracy_reward").check_columns({"train": ["answer"]})


def test_the_format_reward_reads_the_text_of_the_message(rollout):
    scores = RewardFunction("trl.rewards.think_format_reward").components(rollout)
    assert scores["think_format_reward"].tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["rollout", "text"])
def test_the_punishment_of_length_is_made_by_its_factory(request, kind):
    rollout = request.getfixturevalue(kind)
    reward = RewardFunction(
        factory="trl.rewards.get_soft_overlong_punishment", kwargs={"max_completion_len": 8, "soft_punish_cache": 4}
    )
    (name,) = reward.weights()
    assert name == "soft_overlong_punishment_reward"
    # Up to 8 - 4 tokens nothing, then a quarter for each token, -1 above 8 (arXiv 2503.14476, equation 13).
    assert reward.components(rollout)[name].tolist() == [0.0, -0.25, -0.75, -1.0]


def test_the_three_make_one_reward(rollout):
    reward = CompositeReward(
        [
            RewardFunction("trl.rewards.accuracy_reward", name="accuracy"),
            RewardFunction("trl.rewards.think_format_reward", name="format"),
            RewardFunction(
                factory="trl.rewards.get_soft_overlong_punishment",
                name="length",
                kwargs={"max_completion_len": 8, "soft_punish_cache": 4},
            ),
        ],
        [1.0, 0.5, 1.0],
    )
    reward.check_columns({"train": ["solution"]})
    # The second prompt has no solution that can be read, so its accuracy does not apply.
    assert reward.total(reward.components(rollout), 2).tolist() == [1.5, 0.25, -0.75, -1.0]


def test_text_instead_of_messages_is_one_line_with_the_place(text):
    with pytest.raises(TrainingError, match=r"reward raised TypeError: string indices .*format_rewards.py"):
        RewardFunction("trl.rewards.think_format_reward").components(text)
