"""Imperfect texts: noisy ones, mild mutations, and texts that are bad on purpose.

A text of noise q in [0, 1] is the reference writer's text for a misread instruction, with slips:

========================================  =====================================================================
misread: each topic                       lost or replaced by another noun with probability 0.45 q
misread: each adjective asked for         lost or replaced with probability 0.4 q
misread: the tone                         another one with probability 0.4 q
misread: the length                       plus a rounded normal number of standard deviation q * (1 + length / 4)
slip: repetition                          a span of 2 to 5 words said again, with probability 0.4 q
slip: each word                           replaced by a random word with probability 0.06 q
slip: each neighbouring pair              swapped with probability 0.05 q
slip: the full stop                       lost with probability 0.6 q
========================================  =====================================================================
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from grpovi_lightning.data.embedded.lexicon import (
    DETERMINERS,
    PREPOSITIONS,
    STOP,
    TONES,
    Lexicon,
    WordClass,
    word_classes,
    word_tones,
)
from grpovi_lightning.data.embedded.prompts import Instruction, Topic, sample_instruction
from grpovi_lightning.data.embedded.size import TaskSize
from grpovi_lightning.data.embedded.writer import write

# Fewest tokens of a text, the end token not counted.
FEWEST_TOKENS = 4


@dataclass(frozen=True)
class NoisyWriter:
    """A writer of texts of any noise from 0 to 1; none is longer than `max_completion_length` less the end token."""

    size: TaskSize
    lexicon: Lexicon

    def write(self, instruction: Instruction, noise: float, rng: random.Random) -> list[str]:
        """Write a text with the faults that the module's docstring lists.

        Args:
            instruction: what was asked for.
            noise: 0 for the reference writer, 1 for the worst.
            rng: source of randomness.
        """
        words = write(self._misread(instruction, noise, rng), self.lexicon, rng)
        return self._fit(self._slip(words, noise, rng))

    def contrast(self, words: list[str], instruction: Instruction, noise: float, rng: random.Random) -> list[str]:
        """Change one thing about the text that only a reader of the prompt can judge, and as little else as possible.

        One of four: the asked topics are exchanged for others in their places; the tone words are; a topic replaces a
        noun that was not asked for; or the text is written anew for another length, with the given noise.
        """
        contrasts = (self._exchange_topics, self._exchange_tone, self._echo)
        change = rng.choices((*contrasts, None), weights=(0.35, 0.25, 0.3, 0.1))[0]
        if change is not None:
            return self._fit(change(list(words), instruction, rng))
        other = sample_instruction(self.size, self.lexicon, rng)
        return self.write(replace(instruction, length=other.length), noise, rng)

    def mutate(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        """Make one mild change to a text: better, worse or neither."""
        mutations = (
            self._mention,
            self._replace_noun,
            self._describe,
            self._undescribe,
            self._retone,
            self._shorten,
            self._lengthen,
            self._toggle_stop,
            _repeat_span,
            _swap_neighbours,
        )
        for mutation in rng.sample(mutations, len(mutations)):
            mutated = self._fit(mutation(list(words), instruction, rng))
            if mutated != words and len(mutated) >= FEWEST_TOKENS:
                return mutated
        return self.write(instruction, 0.5, rng)

    def degenerate(self, instruction: Instruction, rng: random.Random) -> list[str]:
        """Write a text of one of the degenerate kinds below, to which a policy may drift."""
        kinds: tuple[Callable[[Instruction, random.Random], list[str]], ...] = (
            self._shortest,
            self._rambling,
            self._list_of_topics,
            self._loop,
            self._shuffled,
            self._off_topic,
            self._word_salad,
            self._topics_then_rambling,
        )
        return self._fit(rng.choice(kinds)(instruction, rng))

    def _fit(self, words: list[str]) -> list[str]:
        return words[: self.size.max_completion_length - 1]

    def _misread(self, instruction: Instruction, noise: float, rng: random.Random) -> Instruction:
        topics: list[Topic] = []
        for topic in instruction.topics:
            if rng.random() < 0.45 * noise:
                if rng.random() < 0.5:
                    continue
                topic = Topic(rng.choice(self.lexicon.nouns), topic.adjective)
            if topic.adjective is not None and rng.random() < 0.4 * noise:
                topic = Topic(topic.noun, rng.choice(self.lexicon.adjectives) if rng.random() < 0.5 else None)
            topics.append(topic)
        tone = rng.choice(TONES) if rng.random() < 0.4 * noise * len(TONES) / (len(TONES) - 1) else instruction.tone
        length = instruction.length + round(rng.gauss(0.0, 1.0) * noise * (1 + instruction.length / 4))
        return replace(
            instruction,
            topics=tuple(topics) or (Topic(rng.choice(self.lexicon.nouns)),),
            tone=tone,
            length=min(max(length, FEWEST_TOKENS), self.size.max_completion_length - 2),
        )

    def _slip(self, words: list[str], noise: float, rng: random.Random) -> list[str]:
        if rng.random() < 0.4 * noise:
            words = _repeat_span(words, None, rng)
        for i in range(len(words) - 1):
            if rng.random() < 0.06 * noise:
                words[i] = rng.choice(self.lexicon.text_words())
            if i and rng.random() < 0.05 * noise:
                words[i - 1], words[i] = words[i], words[i - 1]
        if len(words) > FEWEST_TOKENS and rng.random() < 0.6 * noise:
            words.pop()
        return words

    # Contrasts and mutations: (words, which they may change; instruction; rng) -> words

    def _exchange_topics(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        asked = {word for topic in instruction.topics for word in str(topic).split()}
        classes, renamed = word_classes(), {}
        for word in sorted(asked.intersection(words)):
            kin = self.lexicon.nouns if classes[word] is WordClass.NOUN else self.lexicon.adjectives
            renamed[word] = rng.choice([w for w in kin if w not in {*asked, *words, *renamed.values()}] or kin)
        return [renamed.get(word, word) for word in words]

    def _exchange_tone(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        tone_words = self.lexicon.tone_words[rng.choice([tone for tone in TONES if tone != instruction.tone])]
        return [rng.choice(tone_words) if word in word_tones() else word for word in words]

    def _echo(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        """Put a topic in the place of a noun that was not asked for, or at the end where there is none."""
        topic = rng.choice(instruction.topics)
        asked = {topic.noun for topic in instruction.topics}
        places = [i for i in _places(words, WordClass.NOUN) if words[i] not in asked]
        if not places:
            body, end = (words[:-1], [STOP]) if words[-1] == STOP else (words, [])
            return [*body, rng.choice(PREPOSITIONS), DETERMINERS[0], *str(topic).split(), *end]
        place = rng.choice(places)
        start = place - (place > 0 and words[place - 1] in self.lexicon.adjectives)
        return [*words[:start], *str(topic).split(), *words[place + 1 :]]

    def _mention(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        """Put a missing topic in the place of a noun that was not asked for."""
        asked = {topic.noun for topic in instruction.topics}
        missing = [topic for topic in instruction.topics if topic.noun not in words]
        places = [i for i in _places(words, WordClass.NOUN) if words[i] not in asked]
        if missing and places:
            topic, place = rng.choice(missing), rng.choice(places)
            words[place : place + 1] = str(topic).split()
        return words

    def _replace_noun(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        places = _places(words, WordClass.NOUN)
        if places:
            words[rng.choice(places)] = rng.choice(self.lexicon.nouns)
        return words

    def _describe(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        """Give an asked noun its asked adjective, or any other noun any adjective."""
        asked = {topic.noun: topic.adjective for topic in instruction.topics}
        places = [i for i in _places(words, WordClass.NOUN) if i and words[i - 1] in DETERMINERS]
        if places:
            place = rng.choice(places)
            words.insert(place, asked.get(words[place]) or rng.choice(self.lexicon.adjectives))
        return words

    def _undescribe(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        places = _places(words, WordClass.ADJECTIVE)
        if places:
            place = rng.choice(places)
            words[place : place + 1] = [rng.choice(self.lexicon.adjectives)] if rng.random() < 0.5 else []
        return words

    def _retone(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        places = _places(words, WordClass.TONE)
        if places:
            tone = instruction.tone if rng.random() < 0.5 else rng.choice(TONES)
            words[rng.choice(places)] = rng.choice(self.lexicon.tone_words[tone])
        return words

    def _shorten(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        """End the text before its last words."""
        if len(words) > FEWEST_TOKENS + 1:
            words = [*words[: -1 - rng.randint(1, min(6, len(words) - FEWEST_TOKENS))], STOP]
        return words

    def _lengthen(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        """Join another clause to the text."""
        more = write(replace(sample_instruction(self.size, self.lexicon, rng), length=4), self.lexicon, rng)
        body = words[:-1] if words[-1] == STOP else words
        return [*body, "and", *more]

    def _toggle_stop(self, words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
        return words[:-1] if words[-1] == STOP else [*words, STOP]

    # Degenerate kinds: (instruction, rng) -> words

    def _shortest(self, instruction: Instruction, rng: random.Random) -> list[str]:
        topic = Topic(instruction.topics[0].noun)
        return write(replace(instruction, topics=(topic,), length=FEWEST_TOKENS), self.lexicon, rng)

    def _rambling(self, instruction: Instruction, rng: random.Random) -> list[str]:
        """Write about the right topics, too long, so that the text is cut off before its end."""
        return write(replace(instruction, length=2 * self.size.max_completion_length), self.lexicon, rng)

    def _list_of_topics(self, instruction: Instruction, rng: random.Random) -> list[str]:
        """List the topics without any verb, once or several times."""
        phrases = [f"the {topic}" for topic in instruction.topics] * rng.randint(1, 4)
        return [*" and ".join(phrases).split(), rng.choice(self.lexicon.tone_words[instruction.tone]), STOP]

    def _loop(self, instruction: Instruction, rng: random.Random) -> list[str]:
        """Repeat one good clause, about as long as asked or up to the limit."""
        clause = write(replace(instruction, length=FEWEST_TOKENS), self.lexicon, rng)[:-1]
        n_words = instruction.length if rng.random() < 0.5 else self.size.max_completion_length
        n_times = max(2, round(n_words / (len(clause) + 1)))
        return [*" and ".join([" ".join(clause)] * n_times).split(), STOP]

    def _shuffled(self, instruction: Instruction, rng: random.Random) -> list[str]:
        words = write(instruction, self.lexicon, rng)
        return [*rng.sample(words[:-1], len(words) - 1), STOP]

    def _off_topic(self, instruction: Instruction, rng: random.Random) -> list[str]:
        """Write a perfect text for another instruction."""
        return write(sample_instruction(self.size, self.lexicon, rng), self.lexicon, rng)

    def _word_salad(self, instruction: Instruction, rng: random.Random) -> list[str]:
        n_words = rng.randint(FEWEST_TOKENS, self.size.max_completion_length)
        return [rng.choice(self.lexicon.text_words()) for _ in range(n_words)]

    def _topics_then_rambling(self, instruction: Instruction, rng: random.Random) -> list[str]:
        """Write a perfect text that goes on after its full stop."""
        return [*write(instruction, self.lexicon, rng), *self._off_topic(instruction, rng)]


def _places(words: list[str], kind: WordClass) -> list[int]:
    classes = word_classes()
    return [i for i, word in enumerate(words) if classes.get(word) is kind]


def _repeat_span(words: list[str], instruction: Instruction | None, rng: random.Random) -> list[str]:
    """Repeat a span of two to five words, right after it or at the end."""
    body = len(words) - 1
    start = rng.randrange(0, max(1, body - 2))
    span = words[start : min(start + rng.randint(2, 5), body)]
    place = start + len(span) if rng.random() < 0.5 else body
    return words[:place] + span + words[place:]


def _swap_neighbours(words: list[str], instruction: Instruction, rng: random.Random) -> list[str]:
    i = rng.randrange(len(words) - 1)
    words[i], words[i + 1] = words[i + 1], words[i]
    return words
