"""Checks of parsed YAML, in the words of somebody who writes it."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grpovi_lightning.run_record.layout import RecordError


def check_mapping(value: Any, where: str) -> dict[str, Any]:
    """Return `value` if it is a mapping with string keys; `where` begins the error message."""
    if not isinstance(value, dict):
        raise RecordError(f"{where} is {kind(value)}, expected a mapping of keys to values")
    for key in value:
        if not isinstance(key, str):
            raise RecordError(f"{where}: key {key!r} is {kind(key)}, expected text; put it in quotes")
    return value


def check_keys(mapping: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse keys that nobody would read; `where` begins the error message."""
    for key in mapping:
        check_choice(key, known, f"{where}: unknown key {key!r}")


def check_choice(got: Any, options: Sequence[str], wrong: str, none: str = "") -> None:
    """Refuse `got` if it is none of the options: `wrong` begins the message, `none` is expected without options."""
    if got not in options:
        expected = f"one of {', '.join(options)}" if options else none
        raise RecordError(f"{wrong}{close_matches(str(got), options)}; expected {expected}")


def close_matches(got: str, options: Iterable[str]) -> str:
    """Return a `(did you mean ...?)` clause, or nothing when no option resembles `got`.

    >>> close_matches("gprovi", ["grpo", "grpovi", "sft"])
    " (did you mean 'grpovi' or 'grpo'?)"
    """
    matches = difflib.get_close_matches(got, list(options), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(match) for match in matches)}?)" if matches else ""


def kind(value: Any) -> str:
    """Return what a parsed YAML value is, in the words of somebody who writes YAML.

    >>> kind(None), kind([1]), kind(True)
    ('empty', 'a list', 'true/false')
    """
    if value is None:
        return "empty"
    names = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return names.get(type(value), f"a {type(value).__name__}")
