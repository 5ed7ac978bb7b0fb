"""The words of the embedded task's language, and the class of each.

The first words of every class are written by hand. Further words are made of syllables and an ending that no
other class has. So a lexicon of any size is a prefix of one endless list, and a word has the same class in all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import chain, count, islice, product
from types import MappingProxyType

STOP = "."
SEPARATOR = ":"
DETERMINERS = ("the", "a")
PREPOSITIONS = ("near", "under", "behind", "beside", "over", "with", "by", "past")
CONJUNCTIONS = ("and", "while", "but", "so")


def _spaced(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_NOUNS = _spaced("""
    fox boat tree house river moon bird stone king child garden bridge cat dog horse lamp window road hill cloud
    ship tower market letter clock sailor baker queen wolf bear mouse plum table chair door mountain valley lake
    forest field flower star wagon train robot dragon wizard farmer teacher painter village castle ladder basket
    candle mirror pillow hammer kettle drum
""")
_ADJECTIVES = _spaced("""
    red blue green tiny young small big tall quick slow bright dark warm cold round wooden golden silver quiet loud
    heavy light clean dusty broken new strange kind wild soft
""")
_INTRANSITIVE = _spaced("""
    sleeps sings dances waits jumps walks runs smiles rests swims hides spins falls turns shines grows
""")
_TRANSITIVE = _spaced("""
    sees finds follows likes holds paints moves watches helps meets carries calls chases lifts guards greets
""")
_TONES = {
    "happy": "happily gladly merrily cheerfully joyfully brightly",
    "sad": "sadly wearily tearfully gloomily mournfully bitterly",
    "calm": "calmly quietly softly gently slowly peacefully",
    "scary": "darkly grimly eerily coldly fearfully dreadfully",
}
TONES = tuple(_TONES)

MAX_NOUNS = 20_000
MAX_ADJECTIVES = 5_000
MAX_VERBS = 4_000
MAX_TONE_WORDS = 200

_ONES = _spaced("one two three four five six seven eight nine")
_TEENS = _spaced("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
_TENS = _spaced("twenty thirty forty fifty sixty seventy eighty ninety")
# Number words: `NUMBER_WORDS[n - 1]` spells n, for n from 1 to 99.
NUMBER_WORDS = (*_ONES, *_TEENS, *chain.from_iterable((ten, *(f"{ten}-{one}" for one in _ONES)) for ten in _TENS))


class WordClass(Enum):
    """Class of a word in the grammar."""

    DETERMINER = "determiner"
    ADJECTIVE = "adjective"
    NOUN = "noun"
    INTRANSITIVE = "intransitive verb"
    TRANSITIVE = "transitive verb"
    PREPOSITION = "preposition"
    TONE = "tone word"
    CONJUNCTION = "conjunction"
    STOP = "full stop"
    OTHER = "word with no place in a text"


# Classes whose words carry meaning: the ones that should not be said twice.
CONTENT_CLASSES = frozenset(
    {WordClass.NOUN, WordClass.ADJECTIVE, WordClass.INTRANSITIVE, WordClass.TRANSITIVE, WordClass.TONE, WordClass.OTHER}
)


@dataclass(frozen=True)
class Lexicon:
    """The words a task of one size draws from; verbs by whether they need an object, tone words by their tone."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    intransitive: tuple[str, ...]
    transitive: tuple[str, ...]
    tone_words: Mapping[str, tuple[str, ...]]

    def text_words(self) -> tuple[str, ...]:
        """Return every word type that a completion may hold, the full stop included."""
        open_words = chain(self.nouns, self.adjectives, self.intransitive, self.transitive, *self.tone_words.values())
        return (STOP, *DETERMINERS, *PREPOSITIONS, *CONJUNCTIONS, *open_words)


def _invented(ending: str) -> Iterator[str]:
    """Yield words of two or more consonant-vowel syllables and an ending without a vowel.

    A stem ends in a vowel and an ending holds none, so words with different endings differ.
    """
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    for n_syllables in count(2):
        for parts in product(syllables, repeat=n_syllables):
            # Reversed, so that neighbours in the list differ at the start, as handwritten words do.
            yield "".join(reversed(parts)) + ending


def _words(handwritten: Sequence[str], ending: str, size: int) -> tuple[str, ...]:
    return tuple(islice(chain(handwritten, _invented(ending)), size))


def build_lexicon(n_nouns: int, n_adjectives: int, n_verbs: int, n_tone_words: int) -> Lexicon:
    """Take the first words of every class.

    Args:
        n_nouns: number of nouns, at most `MAX_NOUNS`.
        n_adjectives: number of adjectives, at most `MAX_ADJECTIVES`.
        n_verbs: number of verbs, at most `MAX_VERBS`; half of them (rounded up) are intransitive.
        n_tone_words: number of words for each tone, at most `MAX_TONE_WORDS`.

    Returns:
        the lexicon; a larger one begins with the words of a smaller one.
    """
    n_intransitive = (n_verbs + 1) // 2
    return Lexicon(
        nouns=_words(_NOUNS, "nt", n_nouns),
        adjectives=_words(_ADJECTIVES, "rm", n_adjectives),
        intransitive=_words(_INTRANSITIVE, "ngs", n_intransitive),
        transitive=_words(_TRANSITIVE, "rks", n_verbs - n_intransitive),
        tone_words=MappingProxyType(
            {tone: _words(words.split(), f"{tone[0]}{tone[-1]}ly", n_tone_words) for tone, words in _TONES.items()}
        ),
    )


@cache
def largest_lexicon() -> Lexicon:
    """Return the lexicon that holds every word of every smaller one."""
    return build_lexicon(MAX_NOUNS, MAX_ADJECTIVES, MAX_VERBS, MAX_TONE_WORDS)


@cache
def word_classes() -> Mapping[str, WordClass]:
    """Return the class of every word that a text may hold."""
    lexicon = largest_lexicon()
    members = {
        WordClass.DETERMINER: DETERMINERS,
        WordClass.ADJECTIVE: lexicon.adjectives,
        WordClass.NOUN: lexicon.nouns,
        WordClass.INTRANSITIVE: lexicon.intransitive,
        WordClass.TRANSITIVE: lexicon.transitive,
        WordClass.PREPOSITION: PREPOSITIONS,
        WordClass.TONE: chain.from_iterable(lexicon.tone_words.values()),
        WordClass.CONJUNCTION: CONJUNCTIONS,
        WordClass.STOP: (STOP,),
    }
    return MappingProxyType({word: kind for kind, words in members.items() for word in words})


@cache
def word_tones() -> Mapping[str, str]:
    """Return the tone that each tone word carries."""
    words = largest_lexicon().tone_words
    return MappingProxyType({word: tone for tone, members in words.items() for word in members})
