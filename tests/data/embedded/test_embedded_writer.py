import random
from itertools import permutations, product

import pytest

from grpovi_lightning.data.embedded import Instruction, TaskSize, Topic, sample_instruction, score, write
from grpovi_lightning.data.embedded.size import fewest_words

SIZES = [
    TaskSize(),
    TaskSize(n_nouns=500, n_adjectives=200, n_verbs=200, n_tone_words=20, max_topics=8, max_words=99,
             max_completion_length=128),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=["default", "large"])
def test_the_reference_writer_earns_the_largest_gold_reward(size: TaskSize):
    rng, lexicon = random.Random(0), size.lexicon()
    for _ in range(1000):
        instruction = sample_instruction(size, lexicon, rng)
        assert score(instruction, write(instruction, lexicon, rng)).reward == pytest.approx(1.0)


@pytest.mark.parametrize(("n_topics", "n_adjectives"), [(k, a) for k in (1, 2, 3) for a in range(k + 1)])
def test_the_reference_writer_hits_every_possible_length(n_topics: int, n_adjectives: int):
    size = TaskSize()
    lexicon = size.lexicon()
    adjectives = [*lexicon.adjectives[:n_adjectives], *[None] * (n_topics - n_adjectives)]
    topics = tuple(map(Topic, lexicon.nouns, adjectives))
    for length, seed in product(range(fewest_words(n_topics, n_adjectives), 25), range(20)):
        words = write(Instruction(topics, "calm", length), lexicon, random.Random(seed))
        assert len(words) == length + 1
        assert words[-1] == "."


def test_what_does_not_fit_is_said_all_the_same():
    instruction = Instruction((Topic("fox", "red"), Topic("boat")), "happy", 4)
    words = write(instruction, TaskSize().lexicon(), random.Random(0))
    assert len(words) - 1 == fewest_words(2, 1)
    assert score(instruction, words).topics == 1.0


def test_topics_come_first_and_in_any_order():
    size, rng = TaskSize(), random.Random(1)
    lexicon = size.lexicon()
    orders = set()
    for _ in range(200):
        instruction = sample_instruction(size, lexicon, rng)
        nouns = [word for word in write(instruction, lexicon, rng) if word in lexicon.nouns]
        asked = [topic.noun for topic in instruction.topics]
        assert set(nouns[: len(asked)]) == set(asked)
        orders.add(tuple(asked.index(noun) for noun in nouns[: len(asked)]))
    assert orders == {order for n in (1, 2, 3) for order in permutations(range(n))}


def test_the_same_seed_gives_the_same_text():
    instruction, lexicon = Instruction((Topic("fox"),), "sad", 20), TaskSize().lexicon()
    texts = [write(instruction, lexicon, random.Random(seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
