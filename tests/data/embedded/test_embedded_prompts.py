import random
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.data.embedded import Instruction, TaskSize, Topic, count_prompts, parse, render
from grpovi_lightning.data.embedded.lexicon import TONES, build_lexicon
from grpovi_lightning.data.embedded.prompts import TEMPLATES, prompt_words, sample_instruction
from grpovi_lightning.data.embedded.size import fewest_words
from grpovi_lightning.errors import UserError

LARGE = build_lexicon(400, 100, 10, 2)


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    nouns = draw(st.lists(st.sampled_from(LARGE.nouns), min_size=1, max_size=8, unique=True))
    adjectives = [draw(st.none() | st.sampled_from(LARGE.adjectives)) for _ in nouns]
    topics = tuple(Topic(noun, adjective) for noun, adjective in zip(nouns, adjectives, strict=True))
    template = draw(st.integers(0, len(TEMPLATES) - 1))
    return Instruction(topics, draw(st.sampled_from(TONES)), draw(st.integers(1, 99)), template)


@given(instructions())
def test_parsing_a_rendered_instruction_gives_it_back(instruction: Instruction):
    assert parse(render(instruction)) == instruction


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (0, "write about the red fox and the boat , happy , ten words :"),
        (1, "write ten words about the red fox and the boat , happy :"),
        (2, "tell a happy story of ten words about the red fox and the boat :"),
        (3, "happy , ten words , about the red fox and the boat :"),
    ],
)
def test_each_template_states_topics_tone_and_length(template: int, prompt: str):
    instruction = Instruction((Topic("fox", "red"), Topic("boat")), "happy", 10, template)
    assert render(instruction) == prompt
    assert parse(prompt) == instruction


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "what is two plus two ?",
        "write about the red fox , happy , ten words",
        "write about the unicorn , happy , ten words :",
        "write about the fox red , happy , ten words :",
        "write about the fox , hungry , ten words :",
        "write about the fox , happy , 10 words :",
        "write about the fox and , happy , ten words :",
    ],
)
def test_a_prompt_of_another_task_is_refused_with_an_example(prompt: str):
    with pytest.raises(UserError, match="expected an instruction of the embedded task such as 'write about the red"):
        parse(prompt)


def test_the_default_language_has_over_100_000_prompts_of_100_to_300_word_types():
    assert count_prompts(TaskSize()) > 100_000
    types = {*prompt_words(TaskSize()), *TaskSize().lexicon().text_words()}
    assert 100 <= len(types) <= 300


def test_the_number_of_prompts_is_that_of_an_enumeration():
    size = TaskSize(n_nouns=8, n_adjectives=4, max_topics=2, min_words=7, max_words=9)
    lexicon = size.lexicon()
    prompts = set()
    for n_topics in (1, 2):
        for nouns in permutations(lexicon.nouns, n_topics):
            for adjectives in product((None, *lexicon.adjectives), repeat=n_topics):
                said = [adjective for adjective in adjectives if adjective]
                if len(said) != len(set(said)):
                    continue
                topics = tuple(map(Topic, nouns, adjectives))
                for length in range(max(7, fewest_words(n_topics, len(said))), 10):
                    for tone, template in product(TONES, range(len(TEMPLATES))):
                        prompts.add(render(Instruction(topics, tone, length, template)))
    assert count_prompts(size) == len(prompts)


def test_sampled_instructions_can_be_fulfilled_and_cover_the_ranges():
    size, rng = TaskSize(), random.Random(0)
    lexicon = size.lexicon()
    drawn = [sample_instruction(size, lexicon, rng) for _ in range(2000)]
    for instruction in drawn:
        nouns = [topic.noun for topic in instruction.topics]
        adjectives = [topic.adjective for topic in instruction.topics if topic.adjective]
        assert len(set(nouns)) == len(nouns) and len(set(adjectives)) == len(adjectives)
        assert fewest_words(len(nouns), len(adjectives)) <= instruction.length <= size.max_words
    assert {instruction.length for instruction in drawn} == set(range(size.min_words, size.max_words + 1))
    assert {len(instruction.topics) for instruction in drawn} == {1, 2, 3}
    assert {instruction.tone for instruction in drawn} == set(TONES)
    assert {instruction.template for instruction in drawn} == set(range(len(TEMPLATES)))
