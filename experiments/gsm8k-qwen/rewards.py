"""Two rules for answers to GSM8K: right or wrong, and how far the solution got."""

import re
from collections.abc import Mapping, Sequence

Completions = Sequence[Sequence[Mapping[str, str]]]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_INTERMEDIATE = re.compile(r"<<[^<>]*=([^<>=]+)>>")


def exact(completions: Completions, answer: Sequence[str]) -> list[float]:
    """Return 1 where the last number of a completion is the answer's, else 0."""
    pairs = zip(completions, answer, strict=True)
    return [float(_numbers(_text(messages))[-1:] == [_result(solution)]) for messages, solution in pairs]


def graded(completions: Completions, answer: Sequence[str]) -> list[float]:
    """Return 1 where the last number is right; elsewhere half the share of the intermediate results that occur.

    The data set marks those of its own solution, as in `<<48/2=24>>`; another way to the answer may have others.
    """
    right = exact(completions, answer)
    pairs = zip(completions, answer, right, strict=True)
    return [full or 0.5 * _share_found(_text(messages), solution) for messages, solution, full in pairs]


def _share_found(text: str, solution: str) -> float:
    wanted = {number for mark in _INTERMEDIATE.findall(solution) for number in _numbers(mark)[:1]}
    return len(wanted & set(_numbers(text))) / len(wanted) if wanted else 0.0


def _result(solution: str) -> float:
    return _numbers(solution.rpartition("####")[2])[-1]


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def _text(messages: Sequence[Mapping[str, str]]) -> str:
    return messages[-1]["content"]
