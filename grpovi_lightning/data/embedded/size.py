"""Sizes of an embedded task, which also make it easier or harder."""

from dataclasses import dataclass, fields

from grpovi_lightning.data.embedded.lexicon import (
    MAX_ADJECTIVES,
    MAX_NOUNS,
    MAX_TONE_WORDS,
    MAX_VERBS,
    NUMBER_WORDS,
    Lexicon,
    build_lexicon,
)
from grpovi_lightning.errors import UserError

# A text should hold one tone word, and one more for each full stretch of so many words.
WORDS_PER_TONE_WORD = 16


def wanted_tone_words(length: int) -> int:
    """Return how many tone words a text of the asked length should hold."""
    return 1 + length // WORDS_PER_TONE_WORD


def fewest_words(n_topics: int, n_adjectives: int) -> int:
    """Return the shortest length, in words, at which everything asked for can be said grammatically.

    The shortest text is "the N1 V the N2 near the N3 ... T": two words a topic, one an adjective, one a
    link between topics (a single topic needs a verb, too), and the wanted tone words.
    """
    without_tone = 2 * n_topics + n_adjectives + max(1, n_topics - 1)
    length = without_tone + 1
    while length < without_tone + wanted_tone_words(length):
        length += 1
    return length


@dataclass(frozen=True)
class TaskSize:
    """The sizes of the language, checked together.

    Attributes:
        n_nouns: number of nouns.
        n_adjectives: number of adjectives.
        n_verbs: number of verbs, half of them intransitive.
        n_tone_words: number of words for each of the four tones.
        max_topics: largest number of topics in one prompt.
        min_words: smallest asked length, in words.
        max_words: largest asked length, in words.
        max_completion_length: longest completion in tokens, full stop and end token included.

    Raises:
        UserError: a size is out of its range, or two of them do not fit together.
    """

    n_nouns: int = 16
    n_adjectives: int = 12
    n_verbs: int = 20
    n_tone_words: int = 4
    max_topics: int = 3
    min_words: int = 5
    max_words: int = 16
    max_completion_length: int = 24

    def __post_init__(self) -> None:
        ranges = {
            "n_nouns": (8, MAX_NOUNS),
            "n_adjectives": (4, MAX_ADJECTIVES),
            "n_verbs": (4, MAX_VERBS),
            "n_tone_words": (2, MAX_TONE_WORDS),
            "max_topics": (1, 8),
            "min_words": (5, len(NUMBER_WORDS)),
            "max_words": (5, len(NUMBER_WORDS)),
            "max_completion_length": (7, 4096),
        }
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), ranges[field.name]
            if not low <= value <= high:
                raise UserError(f"got {field.name}={value}: expected {low} to {high}; choose a number in that range")
        if self.max_words < self.min_words:
            raise UserError(
                f"got min_words={self.min_words} and max_words={self.max_words}: expected min_words <= max_words; "
                "lower min_words or raise max_words"
            )
        most = fewest_words(self.max_topics, self.max_topics)
        if self.max_words < most:
            raise UserError(
                f"got max_words={self.max_words}: expected at least {most} to fit max_topics={self.max_topics} topics "
                "with an adjective each; raise max_words or lower max_topics"
            )
        if self.max_completion_length < self.max_words + 2:
            raise UserError(
                f"got max_completion_length={self.max_completion_length}: expected at least max_words + 2 = "
                f"{self.max_words + 2}, room for the full stop and the end token; raise max_completion_length or lower "
                "max_words"
            )
        for name in ("n_nouns", "n_adjectives"):
            if getattr(self, name) < 2 * self.max_topics:
                raise UserError(
                    f"got {name}={getattr(self, name)}: expected at least twice max_topics={self.max_topics}; "
                    f"raise {name} or lower max_topics"
                )

    def lexicon(self) -> Lexicon:
        """Return the words of a task of this size."""
        return build_lexicon(self.n_nouns, self.n_adjectives, self.n_verbs, self.n_tone_words)
