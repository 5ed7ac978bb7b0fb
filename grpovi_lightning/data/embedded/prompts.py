"""Instructions, and the prompts that state them: "write about the red fox and the boat , happy , ten words :"."""

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from math import comb, perm

from grpovi_lightning.data.embedded.lexicon import (
    NUMBER_WORDS,
    SEPARATOR,
    TONES,
    Lexicon,
    WordClass,
    word_classes,
)
from grpovi_lightning.data.embedded.size import TaskSize, fewest_words
from grpovi_lightning.errors import UserError

# The ways of asking. `{length}` is a number word.
TEMPLATES = (
    "write about {topics} , {tone} , {length} words :",
    "write {length} words about {topics} , {tone} :",
    "tell a {tone} story of {length} words about {topics} :",
    "{tone} , {length} words , about {topics} :",
)
_PATTERNS = tuple(
    re.compile(
        re.escape(template)
        .replace(r"\{topics\}", "(?P<topics>.+)")
        .replace(r"\{tone\}", r"(?P<tone>\S+)")
        .replace(r"\{length\}", r"(?P<length>\S+)")
    )
    for template in TEMPLATES
)
_LENGTHS = {word: number for number, word in enumerate(NUMBER_WORDS, start=1)}
_ADJECTIVE_SHARE = 0.6


@dataclass(frozen=True)
class Topic:
    """A thing to write about, and the word to put right before it, or None."""

    noun: str
    adjective: str | None = None

    def __str__(self) -> str:
        return self.noun if self.adjective is None else f"{self.adjective} {self.noun}"


@dataclass(frozen=True)
class Instruction:
    """Contents of one prompt: topics, tone and length of the text to write.

    Attributes:
        topics: the things to mention, nouns and adjectives all different.
        tone: one of `TONES`.
        length: number of words, without the full stop.
        template: index into `TEMPLATES`.
    """

    topics: tuple[Topic, ...]
    tone: str
    length: int
    template: int = 0


def render(instruction: Instruction) -> str:
    """Return the prompt that states an instruction, from its first word to the separator."""
    return TEMPLATES[instruction.template].format(
        topics=" and ".join(f"the {topic}" for topic in instruction.topics),
        tone=instruction.tone,
        length=NUMBER_WORDS[instruction.length - 1],
    )


@lru_cache(maxsize=65_536)  # a prompt comes once for each of its completions
def parse(prompt: str) -> Instruction:
    """Read an instruction back from its prompt, words separated by single spaces: the inverse of `render`.

    Raises:
        UserError: the text is no prompt of this language.
    """
    for template, pattern in enumerate(_PATTERNS):
        match = pattern.fullmatch(prompt)
        if match is None:
            continue
        topics = tuple(_parse_topic(phrase) for phrase in match["topics"].split(" and "))
        if match["tone"] in TONES and match["length"] in _LENGTHS and None not in topics:
            known = tuple(topic for topic in topics if topic is not None)
            return Instruction(known, match["tone"], _LENGTHS[match["length"]], template)
    example = render(Instruction((Topic("fox", "red"), Topic("boat")), "happy", 10))
    raise UserError(
        f"got the prompt {prompt!r}: expected an instruction of the embedded task such as {example!r}; "
        "give prompts that `grpovi task` wrote, or another reward function"
    )


def _parse_topic(phrase: str) -> Topic | None:
    classes = word_classes()
    match phrase.split(" "):
        case ["the", noun] if classes.get(noun) is WordClass.NOUN:
            return Topic(noun)
        case ["the", adjective, noun] if (
            classes.get(noun) is WordClass.NOUN and classes.get(adjective) is WordClass.ADJECTIVE
        ):
            return Topic(noun, adjective)
    return None


def prompt_words(size: TaskSize) -> tuple[str, ...]:
    """Return every word type that a prompt of this size may hold; some occur in completions, too."""
    lexicon = size.lexicon()
    fixed = dict.fromkeys(word for template in TEMPLATES for word in template.split() if not word.startswith("{"))
    lengths = NUMBER_WORDS[size.min_words - 1 : size.max_words]
    return (SEPARATOR, *(w for w in fixed if w != SEPARATOR), "the", "and", *TONES, *lengths, *lexicon.nouns,
            *lexicon.adjectives)  # fmt: skip


def sample_instruction(size: TaskSize, lexicon: Lexicon, rng: random.Random) -> Instruction:
    """Draw an instruction that can be fulfilled.

    The number of topics is uniform. Each topic has an adjective with probability `_ADJECTIVE_SHARE`. The length is
    uniform over those at which everything fits.
    """
    nouns = rng.sample(lexicon.nouns, rng.randint(1, size.max_topics))
    described = [rng.random() < _ADJECTIVE_SHARE for _ in nouns]
    adjectives = iter(rng.sample(lexicon.adjectives, sum(described)))
    topics = tuple(
        Topic(noun, next(adjectives) if with_one else None) for noun, with_one in zip(nouns, described, strict=True)
    )
    shortest = max(size.min_words, fewest_words(len(topics), sum(described)))
    return Instruction(topics, rng.choice(TONES), rng.randint(shortest, size.max_words), rng.randrange(len(TEMPLATES)))


def count_prompts(size: TaskSize) -> int:
    """Count the instructions that `sample_instruction` can give: as many prompts, because `parse` inverts `render`."""
    total = 0
    for n_topics in range(1, size.max_topics + 1):
        for n_adjectives in range(n_topics + 1):
            shortest = max(size.min_words, fewest_words(n_topics, n_adjectives))
            lengths = size.max_words - shortest + 1
            choices = (
                perm(size.n_nouns, n_topics) * comb(n_topics, n_adjectives) * perm(size.n_adjectives, n_adjectives)
            )
            total += choices * lengths * len(TONES) * len(TEMPLATES)
    return total
