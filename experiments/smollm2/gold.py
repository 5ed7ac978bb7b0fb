"""The gold reward: how positive the words of a completion are, by VADER."""

from collections.abc import Mapping, Sequence

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_ANALYSER = SentimentIntensityAnalyzer()


def positivity(completions: Sequence[Sequence[Mapping[str, str]]]) -> list[float]:
    """Return VADER's compound score of the last message of each completion: -1 to 1, and 0 where it rates no word."""
    return [_ANALYSER.polarity_scores(messages[-1]["content"])["compound"] for messages in completions]
