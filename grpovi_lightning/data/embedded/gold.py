"""The gold reward: how well a text answers its instruction.

Every part lies in [0, 1], and so does the reward::

    reward  = content * form
    content = 0.45 * topics + 0.2 * tone    + 0.35 * length
    form    = 0.25 * grammar + 0.5 * novelty + 0.25 * ending

    topics  = mean over the asked topics of 1 (mentioned as asked), 0.5 (mentioned without the asked
              adjective right before it) or 0 (missing)
    tone    = min(right, wanted) / wanted / (1 + wrong)
              right, wrong: numbers of different words of the asked tone and of other tones;
              wanted = 1 + asked length // 16
    length  = exp(-|words - asked| / (2 + asked / 8)), the full stop not counted as a word
    grammar = share of the tokens (words and full stops) that may stand where they stand, given the class of
              the token before and whether the clause has its verb already
    novelty = ((different content words / content words) * (different pairs / pairs))^2, pairs of neighbouring
              words of which at least one is a content word
    ending  = 1 if the text ends with its only full stop, else 0; an empty text has form 0

The reward is a product so that well-formed text earns nothing unless it answers its own prompt: no constant text
earns much. Its parts are smooth, so that rewards of a group are seldom equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp
from typing import Any

from grpovi_lightning.data.embedded.lexicon import CONTENT_CLASSES, STOP, WordClass, word_classes, word_tones
from grpovi_lightning.data.embedded.prompts import Instruction, Topic, parse
from grpovi_lightning.data.embedded.size import wanted_tone_words
from grpovi_lightning.errors import UserError

# Smallest and largest gold reward that there can be.
GOLD_RANGE = (0.0, 1.0)
TOPICS_WEIGHT, TONE_WEIGHT, LENGTH_WEIGHT = 0.45, 0.2, 0.35
GRAMMAR_WEIGHT, NOVELTY_WEIGHT, ENDING_WEIGHT = 0.25, 0.5, 0.25
BARE_TOPIC = 0.5

_AFTER_PREDICATE = frozenset({WordClass.PREPOSITION, WordClass.TONE, WordClass.CONJUNCTION, WordClass.STOP})
_AFTER_TONE = frozenset({WordClass.PREPOSITION, WordClass.CONJUNCTION, WordClass.STOP})
_VERBS = frozenset({WordClass.INTRANSITIVE, WordClass.TRANSITIVE})
_DETERMINER_ONLY = frozenset({WordClass.DETERMINER})
# (class of the token before, does the clause have its verb) -> classes that may follow. None: start of the text.
# After a missing pair nothing may follow.
GRAMMAR: dict[tuple[WordClass | None, bool], frozenset[WordClass]] = {
    (None, False): _DETERMINER_ONLY,
    (WordClass.CONJUNCTION, False): _DETERMINER_ONLY,
    (WordClass.PREPOSITION, True): _DETERMINER_ONLY,
    (WordClass.TRANSITIVE, True): _DETERMINER_ONLY,
    (WordClass.NOUN, False): _VERBS | {WordClass.TONE},
    (WordClass.TONE, False): _VERBS,
    (WordClass.NOUN, True): _AFTER_PREDICATE,
    (WordClass.INTRANSITIVE, True): _AFTER_PREDICATE,
    (WordClass.TONE, True): _AFTER_TONE,
    **{(WordClass.DETERMINER, verb): frozenset({WordClass.ADJECTIVE, WordClass.NOUN}) for verb in (False, True)},
    **{(WordClass.ADJECTIVE, verb): frozenset({WordClass.NOUN}) for verb in (False, True)},
}


@dataclass(frozen=True)
class GoldScore:
    """The parts of the gold reward of one text, each in [0, 1]; the module's docstring gives the formulas."""

    topics: float
    tone: float
    length: float
    grammar: float
    novelty: float
    ending: float

    @property
    def content(self) -> float:
        """How far the text does what its prompt asks."""
        return TOPICS_WEIGHT * self.topics + TONE_WEIGHT * self.tone + LENGTH_WEIGHT * self.length

    @property
    def form(self) -> float:
        """How well the text is made, whatever its prompt."""
        return GRAMMAR_WEIGHT * self.grammar + NOVELTY_WEIGHT * self.novelty + ENDING_WEIGHT * self.ending

    @property
    def reward(self) -> float:
        """The gold reward, content times form."""
        return self.content * self.form


def gold_reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Return gold rewards: a pure function of prompt and completion texts, with the signature of TRL's rewards.

    Args:
        prompts: B prompt texts of the embedded task.
        completions: B completion texts, decoded without special tokens.
        columns: what else TRL passes; not read.

    Returns:
        B rewards in `GOLD_RANGE`.

    Raises:
        UserError: a prompt is none of the embedded task, or the numbers of prompts and completions differ.
    """
    if len(prompts) != len(completions):
        raise UserError(
            f"got {len(prompts)} prompts and {len(completions)} completions: expected one completion for each prompt; "
            "repeat a prompt for each of its completions"
        )
    return [score(parse(prompt), text.split()).reward for prompt, text in zip(prompts, completions, strict=True)]


def score(instruction: Instruction, words: Sequence[str]) -> GoldScore:
    """Return the parts of the gold reward of one text, given as its words, full stops included."""
    if not words:
        return GoldScore(0.0, 0.0, _length_part(instruction.length, 0), 0.0, 0.0, 0.0)
    known = word_classes()
    classes = [known.get(word, WordClass.OTHER) for word in words]
    n_stops = words.count(STOP)
    return GoldScore(
        topics=sum(_topic_part(topic, words) for topic in instruction.topics) / len(instruction.topics),
        tone=_tone_part(instruction, words),
        length=_length_part(instruction.length, len(words) - n_stops),
        grammar=_grammar_part(classes),
        novelty=_novelty_part(words, classes),
        ending=1.0 if n_stops == 1 and words[-1] == STOP else 0.0,
    )


def _topic_part(topic: Topic, words: Sequence[str]) -> float:
    if topic.noun not in words:
        return 0.0
    if topic.adjective is None:
        return 1.0
    return 1.0 if (topic.adjective, topic.noun) in pairwise(words) else BARE_TOPIC


def _tone_part(instruction: Instruction, words: Sequence[str]) -> float:
    tones = word_tones()
    said = [tones[word] for word in set(words) if word in tones]
    right = said.count(instruction.tone)
    wanted = wanted_tone_words(instruction.length)
    return min(right, wanted) / wanted / (1 + len(said) - right)


def _length_part(asked: int, got: int) -> float:
    return exp(-abs(got - asked) / (2 + asked / 8))


def _grammar_part(classes: Sequence[WordClass]) -> float:
    before, has_verb, n_permitted = None, False, 0
    for kind in classes:
        n_permitted += kind in GRAMMAR.get((before, has_verb), frozenset())
        if kind in _VERBS:
            has_verb = True
        elif kind is WordClass.CONJUNCTION:
            has_verb = False
        before = kind
    return n_permitted / len(classes)


def _novelty_part(words: Sequence[str], classes: Sequence[WordClass]) -> float:
    is_content = [kind in CONTENT_CLASSES for kind in classes]
    content = [word for word, keep in zip(words, is_content, strict=True) if keep]
    pairs = [(words[i], words[i + 1]) for i in range(len(words) - 1) if is_content[i] or is_content[i + 1]]
    return (_distinct_share(content) * _distinct_share(pairs)) ** 2


def _distinct_share(items: Sequence[Any]) -> float:
    return len(set(items)) / len(items) if items else 0.0
