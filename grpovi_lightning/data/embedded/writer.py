"""The reference writer: its texts do exactly what an instruction asks, and so earn a gold reward of 1."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from grpovi_lightning.data.embedded.lexicon import CONJUNCTIONS, DETERMINERS, PREPOSITIONS, STOP, Lexicon
from grpovi_lightning.data.embedded.prompts import Instruction, Topic
from grpovi_lightning.data.embedded.size import wanted_tone_words

_DEFINITE_SHARE = 0.7


@dataclass
class _Clause:
    """A subject, a verb and what follows; `direct`: the verb is transitive, and the second phrase its object."""

    phrases: list[Topic]
    direct: bool

    def n_words(self) -> int:
        n_phrase_words = sum(2 + (phrase.adjective is not None) for phrase in self.phrases)
        return n_phrase_words + len(self.phrases) - 1 + (not self.direct)

    def tone_places(self) -> list[int]:
        """Return places for a tone word: 0 before the verb, 1 after an intransitive one, i >= 2 after phrase i."""
        return [0, *([] if self.direct else [1]), *range(2, len(self.phrases) + 1)]


@dataclass
class _Plan:
    """Clauses of a text, before its function words, verbs and tone words are drawn."""

    clauses: list[_Clause]
    n_tone_words: int

    def n_words(self) -> int:
        return sum(clause.n_words() for clause in self.clauses) + len(self.clauses) - 1 + self.n_tone_words

    def tone_places(self) -> list[tuple[int, int]]:
        """Return (index of the clause, place in the clause) of every place for a tone word."""
        return [(i, place) for i, clause in enumerate(self.clauses) for place in clause.tone_places()]


@dataclass
class _Pool:
    """Words that the text has not used yet; used ones only when there are no others."""

    rng: random.Random
    used: set[str] = field(default_factory=set)

    def draw(self, words: Sequence[str]) -> str:
        word = self.rng.choice(words)
        if word in self.used:
            word = self.rng.choice([w for w in words if w not in self.used] or words)
        self.used.add(word)
        return word


def write(instruction: Instruction, lexicon: Lexicon, rng: random.Random) -> list[str]:
    """Write a text of gold reward 1.

    The topics come first, in any order; words that fill the text up come after them, and a full stop ends it. A text
    gets longer than asked only where the topics do not fit into the asked length (`fewest_words`), and repeats words
    only where the lexicon has too few.
    """
    pool = _Pool(rng, {word for topic in instruction.topics for word in str(topic).split()})
    topics = rng.sample(instruction.topics, len(instruction.topics))
    clause = _Clause(topics, direct=len(topics) > 1)
    plan = _Plan([clause], wanted_tone_words(instruction.length))
    while plan.n_words() < instruction.length:
        moves = _affordable_moves(plan, instruction.topics, instruction.length - plan.n_words(), lexicon, pool)
        _, move = rng.choices(moves, weights=[weight for weight, _ in moves])[0]
        move()
    return _spell(plan, instruction.tone, lexicon, pool)


def _affordable_moves(
    plan: _Plan, asked: Sequence[Topic], room: int, lexicon: Lexicon, pool: _Pool
) -> list[tuple[float, Callable[[], None]]]:
    """Return the changes that make the plan longer by at most `room` words, each with its weight."""
    rng = pool.rng

    def add_clause() -> None:
        plan.clauses.append(_Clause([Topic(pool.draw(lexicon.nouns))], direct=False))

    def add_phrase() -> None:
        plan.clauses[-1].phrases.append(Topic(pool.draw(lexicon.nouns)))

    def split_clause() -> None:
        i = rng.choice([i for i, clause in enumerate(plan.clauses) if len(clause.phrases) > 1])
        phrases = plan.clauses[i].phrases
        cut = rng.randrange(1, len(phrases))
        plan.clauses[i : i + 1] = [_Clause(part, direct=len(part) > 1) for part in (phrases[:cut], phrases[cut:])]

    def add_object() -> None:
        add_phrase()
        plan.clauses[-1].direct = True

    def make_indirect() -> None:
        rng.choice([clause for clause in plan.clauses if clause.direct]).direct = False

    def add_adjective() -> None:
        bare = [(c.phrases, i) for c in plan.clauses for i, phrase in enumerate(c.phrases) if phrase.adjective is None]
        filling = [(phrases, i) for phrases, i in bare if phrases[i] not in asked]
        phrases, i = rng.choice(filling or bare)
        phrases[i] = Topic(phrases[i].noun, pool.draw(lexicon.adjectives))

    def add_tone_word() -> None:
        plan.n_tone_words += 1

    any_long = any(len(clause.phrases) > 1 for clause in plan.clauses)
    any_direct = any(clause.direct for clause in plan.clauses)
    any_bare = any(phrase.adjective is None for clause in plan.clauses for phrase in clause.phrases)
    moves: list[tuple[int, bool, float, Callable[[], None]]] = [
        (4, True, 3.0, add_clause),
        (3, True, 3.0, add_phrase),
        (2, any_long, 2.0, split_clause),
        (2, len(plan.clauses[-1].phrases) == 1, 2.0, add_object),
        (1, any_direct, 1.0, make_indirect),
        (1, any_bare, 2.0, add_adjective),
    ]
    affordable = [(weight, move) for cost, possible, weight, move in moves if possible and cost <= room]
    # A surplus tone word only where nothing else fits: at most two are needed, and every clause has two places.
    return affordable or [(1.0, add_tone_word)]


def _spell(plan: _Plan, tone: str, lexicon: Lexicon, pool: _Pool) -> list[str]:
    """Draw the words of a finished plan."""
    rng = pool.rng
    toned = set(rng.sample(plan.tone_places(), plan.n_tone_words))
    words: list[str] = []

    def say(*more: str) -> None:
        words.extend(more)

    def say_tone(i: int, place: int) -> None:
        if (i, place) in toned:
            say(pool.draw(lexicon.tone_words[tone]))

    for i, clause in enumerate(plan.clauses):
        if i:
            say(rng.choice(CONJUNCTIONS))
        say(*_phrase(clause.phrases[0], rng))
        say_tone(i, 0)
        say(pool.draw(lexicon.transitive if clause.direct else lexicon.intransitive))
        say_tone(i, 1)
        for place, phrase in enumerate(clause.phrases[1:], start=2):
            if place > 2 or not clause.direct:
                say(rng.choice(PREPOSITIONS))
            say(*_phrase(phrase, rng))
            say_tone(i, place)
    say(STOP)
    return words


def _phrase(phrase: Topic, rng: random.Random) -> list[str]:
    definite, indefinite = DETERMINERS
    determiner = definite if rng.random() < _DEFINITE_SHARE else indefinite
    return [determiner, phrase.noun] if phrase.adjective is None else [determiner, phrase.adjective, phrase.noun]
