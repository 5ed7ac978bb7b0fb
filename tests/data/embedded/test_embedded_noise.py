import random
from dataclasses import replace
from statistics import fmean

import pytest

from grpovi_lightning.data.embedded import Instruction, TaskSize, Topic, sample_instruction, score, write
from grpovi_lightning.data.embedded.noise import FEWEST_TOKENS, NoisyWriter

SIZE = TaskSize()
WRITER = NoisyWriter(SIZE, SIZE.lexicon())


def sampled(n: int, seed: int = 0) -> list[Instruction]:
    rng = random.Random(seed)
    return [sample_instruction(SIZE, WRITER.lexicon, rng) for _ in range(n)]


def test_without_noise_the_noisy_writer_is_the_reference_writer():
    for seed, instruction in enumerate(sampled(100)):
        assert score(instruction, WRITER.write(instruction, 0.0, random.Random(seed))).reward == pytest.approx(1.0)


def test_the_gold_reward_and_each_of_its_parts_fall_with_the_noise():
    rng, instructions = random.Random(0), sampled(1000)
    for part in ("reward", "topics", "tone", "length", "grammar", "novelty", "ending"):
        means = [
            fmean(getattr(score(i, WRITER.write(i, noise, rng)), part) for i in instructions) for noise in (0, 0.5, 1)
        ]
        assert means[0] > means[1] > means[2], part


@pytest.mark.parametrize("kind", ["noisy", "mutated", "degenerate"])
def test_every_text_has_four_tokens_or_more_and_leaves_room_for_the_end_token(kind: str):
    rng, lengths = random.Random(0), set()
    for instruction in sampled(3000):
        words = WRITER.write(instruction, rng.random(), rng)
        if kind == "mutated":
            words = WRITER.mutate(words, instruction, rng)
        elif kind == "degenerate":
            words = WRITER.degenerate(instruction, rng)
        lengths.add(len(words))
    assert min(lengths) == FEWEST_TOKENS
    assert max(lengths) == SIZE.max_completion_length - 1


def test_degenerate_texts_cover_truncated_repetitive_short_and_off_topic_ones():
    rng, instructions = random.Random(0), sampled(400)
    found = [score(i, WRITER.degenerate(i, rng)) for i in instructions]
    assert any(s.ending == 0 and s.length < 0.2 for s in found)
    assert any(s.novelty < 0.3 for s in found)
    assert any(s.topics == 0 and s.grammar == 1 and s.novelty == 1 for s in found)
    assert any(s.grammar < 0.5 for s in found)
    assert any(s.topics == 1 and s.novelty < 0.7 for s in found)


def test_a_mutation_changes_a_text_mildly_upwards_and_downwards():
    rng, gaps = random.Random(0), []
    for instruction in sampled(1000):
        words = WRITER.write(instruction, 0.5, rng)
        mutated = WRITER.mutate(words, instruction, rng)
        assert mutated != words
        gaps.append(score(instruction, mutated).reward - score(instruction, words).reward)
    assert fmean(abs(gap) for gap in gaps) < 0.15
    assert sum(gap > 0 for gap in gaps) > 120 and sum(gap < 0 for gap in gaps) > 200


def test_a_mutation_can_mention_a_missing_topic():
    instruction = Instruction((Topic("fox", "red"), Topic("boat")), "calm", 8)
    words = ["the", "red", "fox", "sees", "a", "tree", "calmly", "."]
    mutated = {" ".join(WRITER.mutate(words, instruction, random.Random(seed))) for seed in range(100)}
    assert "the red fox sees a boat calmly ." in mutated


def test_mutating_leaves_the_text_it_was_given_alone():
    instruction = sampled(1)[0]
    words = write(instruction, WRITER.lexicon, random.Random(0))
    kept = list(words)
    for seed in range(50):
        WRITER.mutate(words, instruction, random.Random(seed))
    assert words == kept


def test_a_contrast_changes_one_respect_that_takes_reading_the_prompt():
    instruction = Instruction((Topic("fox", "red"), Topic("boat")), "calm", 10)
    words = ["the", "red", "fox", "sees", "a", "boat", "calmly", "near", "the", "tree", "."]
    before, found = score(instruction, words), set()
    for seed in range(300):
        changed = WRITER.contrast(words, instruction, 0.0, random.Random(seed))
        places = [i for i, (old, new) in enumerate(zip(words, changed, strict=False)) if old != new]
        after = score(instruction, changed)
        if len(changed) == len(words) and places == [1, 2, 5]:
            assert after == replace(before, topics=0.0)
            found.add("topics")
        elif len(changed) == len(words) and places == [6]:
            assert after == replace(before, tone=0.0)
            found.add("tone")
        elif changed[:9] == words[:9] and changed[9] in ("red", "boat"):
            assert after.topics == 1.0 and after.novelty < 1.0
            found.add("echo")
        else:
            assert after.topics == after.tone == after.novelty == 1.0
            found.add("length")
    assert found == {"topics", "tone", "echo", "length"}


def test_a_topic_is_said_once_more_at_the_end_where_no_other_noun_can_make_room():
    instruction = Instruction((Topic("fox", "red"),), "calm", 5)
    words = ["the", "red", "fox", "calmly", "sleeps", "."]
    contrasts = [WRITER.contrast(words, instruction, 0.0, random.Random(seed)) for seed in range(100)]
    assert any(c[:5] == words[:5] and c[6:] == ["the", "red", "fox", "."] for c in contrasts)
