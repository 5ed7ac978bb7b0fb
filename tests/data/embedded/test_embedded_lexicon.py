from itertools import chain

import pytest

from grpovi_lightning.data.embedded.lexicon import (
    CONJUNCTIONS,
    DETERMINERS,
    NUMBER_WORDS,
    PREPOSITIONS,
    TONES,
    WordClass,
    build_lexicon,
    largest_lexicon,
    word_classes,
    word_tones,
)


def test_no_word_has_two_classes_even_in_the_largest_lexicon():
    lexicon = largest_lexicon()
    words = [
        *DETERMINERS, *PREPOSITIONS, *CONJUNCTIONS, ".", *lexicon.nouns, *lexicon.adjectives, *lexicon.intransitive,
        *lexicon.transitive, *chain.from_iterable(lexicon.tone_words.values()),
    ]  # fmt: skip
    assert len(words) == len(set(words)) == len(word_classes())


def test_a_larger_lexicon_begins_with_the_words_of_a_smaller_one():
    small, large = build_lexicon(50, 20, 21, 3), build_lexicon(500, 200, 100, 30)
    assert large.nouns[:50] == small.nouns
    assert large.adjectives[:20] == small.adjectives
    assert large.intransitive[:11] == small.intransitive
    assert large.transitive[:10] == small.transitive
    assert all(large.tone_words[tone][:3] == small.tone_words[tone] for tone in TONES)


def test_a_lexicon_has_as_many_words_as_asked_for():
    lexicon = build_lexicon(333, 77, 55, 44)
    assert (len(lexicon.nouns), len(lexicon.adjectives)) == (333, 77)
    assert len(lexicon.intransitive) + len(lexicon.transitive) == 55
    assert {len(words) for words in lexicon.tone_words.values()} == {44}


@pytest.mark.parametrize(("number", "word"), [(1, "one"), (10, "ten"), (21, "twenty-one"), (99, "ninety-nine")])
def test_number_words_spell_their_position(number: int, word: str):
    assert NUMBER_WORDS[number - 1] == word
    assert len(set(NUMBER_WORDS)) == 99


def test_invented_words_have_the_class_they_were_invented_for():
    lexicon = build_lexicon(100, 100, 100, 20)
    assert word_classes()[lexicon.nouns[-1]] is WordClass.NOUN
    assert word_classes()[lexicon.adjectives[-1]] is WordClass.ADJECTIVE
    assert word_tones()[lexicon.tone_words["scary"][-1]] == "scary"
