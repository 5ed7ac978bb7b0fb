import inspect
import random
from math import exp, sqrt
from statistics import fmean, pstdev

import pytest

from grpovi_lightning.data.embedded import TaskSize, gold_reward, render, sample_instruction, write_task
from grpovi_lightning.data.embedded.gold import GoldScore
from grpovi_lightning.data.embedded.noise import NoisyWriter
from grpovi_lightning.data.embedded.samples import (
    Pair,
    compare,
    demonstrate,
    gold_statistics,
    pair_statistics,
    preference_probability,
)

SIZE = TaskSize()
WRITER = NoisyWriter(SIZE, SIZE.lexicon())
SCALE = inspect.signature(write_task).parameters["preference_scale"].default


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    rng = random.Random(0)
    return [compare(sample_instruction(SIZE, WRITER.lexicon, rng), WRITER, SCALE, rng) for _ in range(4000)]


def test_bradley_terry_probabilities_are_symmetric_and_even_at_no_difference():
    assert preference_probability(0.4, 0.4, 10.0) == 0.5
    assert preference_probability(0.9, 0.2, 10.0) == pytest.approx(1 - preference_probability(0.2, 0.9, 10.0))
    assert preference_probability(0.6, 0.5, 10.0) == pytest.approx(1 / (1 + exp(-1.0)))


def test_labels_follow_bradley_terry_on_the_gold_difference(pairs: list[Pair]):
    for low, high in ((0.0, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 1.0)):
        gaps = [p.chosen_gold - p.rejected_gold for p in pairs if low < abs(p.chosen_gold - p.rejected_gold) <= high]
        expected = [preference_probability(abs(gap), 0.0, SCALE) for gap in gaps]
        deviation = sqrt(sum(p * (1 - p) for p in expected)) / len(gaps)
        assert len(gaps) > 200
        assert abs(fmean(gap > 0 for gap in gaps) - fmean(expected)) < 3.5 * deviation


def test_a_pair_holds_two_different_texts_and_their_own_gold_rewards(pairs: list[Pair]):
    for pair in pairs[:500]:
        assert pair.chosen != pair.rejected
        prompt = render(pair.instruction)
        assert gold_reward([prompt] * 2, [pair.chosen, pair.rejected]) == [pair.chosen_gold, pair.rejected_gold]


def test_the_best_possible_accuracy_on_the_labels_leaves_room_for_noise(pairs: list[Pair]):
    found = pair_statistics(pairs, SCALE)
    assert 0.82 < found["bayes_accuracy"] < 0.94
    assert found["label_accuracy"] == pytest.approx(found["bayes_accuracy"], abs=0.02)


def test_pairs_cover_the_whole_range_of_gold_rewards_and_lengths(pairs: list[Pair]):
    golds = [gold for pair in pairs for gold in (pair.chosen_gold, pair.rejected_gold)]
    assert min(golds) < 0.02 and max(golds) == pytest.approx(1.0)
    lengths = {len(text.split()) for pair in pairs for text in (pair.chosen, pair.rejected)}
    assert lengths == set(range(4, SIZE.max_completion_length))
    assert fmean(abs(pair.chosen_gold - pair.rejected_gold) < 0.1 for pair in pairs) > 0.15


def test_pair_statistics_of_two_pairs_are_those_computed_by_hand():
    instruction = sample_instruction(SIZE, WRITER.lexicon, random.Random(0))
    found = pair_statistics([Pair(instruction, "a", "b", 0.9, 0.7), Pair(instruction, "a", "b", 0.5, 0.5)], 5.0)
    assert found["bayes_accuracy"] == pytest.approx((1 / (1 + exp(-1.0)) + 0.5) / 2)
    assert found["label_accuracy"] == 0.75
    assert found["mean_gap"] == pytest.approx(0.1)


def test_demonstrations_are_imperfect_and_broad():
    rng = random.Random(0)
    golds = [demonstrate(sample_instruction(SIZE, WRITER.lexicon, rng), WRITER, rng).gold for _ in range(3000)]
    rewards = [gold.reward for gold in golds]
    assert 0.3 < fmean(rewards) < 0.6
    assert 0.12 < pstdev(rewards) < 0.28
    found = gold_statistics(golds)
    assert found["mean"] == pytest.approx(fmean(rewards)) and found["std"] == pytest.approx(pstdev(rewards))
    assert found["min"] == min(rewards) and found["max"] == max(rewards)


def test_demonstrators_ramble_past_the_asked_length_and_mostly_lose_the_full_stop():
    rng = random.Random(0)
    shown = [demonstrate(sample_instruction(SIZE, WRITER.lexicon, rng), WRITER, rng) for _ in range(2000)]
    excess = fmean(len(d.text.replace(" .", "").split()) / d.instruction.length for d in shown)
    assert 1.25 < excess < 1.75
    assert fmean(d.gold.ending for d in shown) < 0.25
    assert max(len(d.text.split()) for d in shown) <= SIZE.max_completion_length - 1


def test_gold_statistics_of_two_texts_are_those_computed_by_hand():
    found = gold_statistics([GoldScore(1, 1, 1, 1, 1, 1), GoldScore(0, 0, 0, 1, 1, 1)])
    assert (found["mean"], found["std"], found["mean_topics"], found["mean_grammar"]) == (0.5, 0.5, 0.5, 1.0)
