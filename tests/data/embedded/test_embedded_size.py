from typing import Any

import pytest

from grpovi_lightning.data.embedded.size import TaskSize, fewest_words, wanted_tone_words
from grpovi_lightning.errors import UserError


@pytest.mark.parametrize(("length", "wanted"), [(5, 1), (15, 1), (16, 2), (31, 2), (32, 3)])
def test_longer_texts_want_more_tone_words(length: int, wanted: int):
    assert wanted_tone_words(length) == wanted


@pytest.mark.parametrize(
    ("n_topics", "n_adjectives", "words"),
    [
        (1, 0, 4),  # the fox sleeps happily
        (1, 1, 5),
        (2, 0, 6),  # the fox sees the boat happily
        (3, 0, 9),  # the fox sees the boat near the tree happily
        (3, 3, 12),
        (5, 1, 17),  # 10 + 1 + 4 = 15 and one tone word would be 16 words, at which two tone words are wanted
    ],
)
def test_the_fewest_words_hold_everything_asked_for(n_topics: int, n_adjectives: int, words: int):
    assert fewest_words(n_topics, n_adjectives) == words


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_nouns": 3}, "got n_nouns=3: expected 8 to 20000"),
        ({"max_topics": 9}, "got max_topics=9: expected 1 to 8"),
        ({"max_words": 100, "max_completion_length": 128}, "got max_words=100: expected 5 to 99"),
        ({"min_words": 20, "max_words": 15}, "got min_words=20 and max_words=15: expected min_words <= max_words"),
        ({"max_words": 11}, "got max_words=11: expected at least 12 to fit max_topics=3"),
        ({"max_completion_length": 17}, "got max_completion_length=17: expected at least max_words [+] 2 = 18"),
        ({"max_topics": 5, "n_nouns": 8, "max_words": 22}, "got n_nouns=8: expected at least twice max_topics=5"),
        ({"n_adjectives": 4}, "got n_adjectives=4: expected at least twice max_topics=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_got_expected_and_remedy(sizes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as error:
        TaskSize(**sizes)
    assert any(remedy in str(error.value) for remedy in ("choose", "raise", "lower"))
