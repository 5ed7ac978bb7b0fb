"""The argument parser's errors, which run over many lines, in one line."""

import argparse
import dataclasses
import difflib
import importlib
import inspect
import re
import traceback
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from omegaconf.errors import OmegaConfBaseException

from grpovi_lightning.errors import UserError, shown

_NOISE = re.compile(
    r"^(Does not validate against any of the Union subtypes|Subtypes: |Errors:|- Expected a <class 'NoneType'>"
    r"|Given value type: |Given value: )"
)
_VALUE = re.compile(r"^Given value: (?!NestedArg)([^{\n]{1,60})$")
_REJECTED = re.compile(
    r"Option '(?P<key>[^']+)' is not accepted"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<of_group>[^']+)'"
    r"|unrecognized arguments: --(?P<argument>[\w.]+)"
    r"|Unexpected keys: \{'(?P<of_mapping>[^']+)'"
)
_CLASS = re.compile(r"class_path '([^']+)'")
_KEY = re.compile(r'Parser key "([^"]+)"')
_PARSERS = ("jsonargparse", "omegaconf", "yaml")
"""Packages whose own errors are about what the person wrote."""


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Turn what reading settings, or building what they describe, raises for a mistake in them into a `UserError`.

    A defect of the code that is built keeps its own error.
    """
    try:
        yield
    except UserError:
        raise
    except argparse.ArgumentError as error:
        raise UserError(one_line(str(error))) from error
    except OmegaConfBaseException as error:
        said = one_line(str(error)).rstrip(".")
        raise UserError(f"settings: {said}; `${{name}}` stands for another setting, such as ${{study_dir}}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config: a file is no text ({error}); expected YAML, saved as UTF-8") from error
    except (ValueError, TypeError, AttributeError) as error:
        # The parser wraps what a constructor raises into "does not validate against any of the types".
        if (cause := user_error(error)) is not None:
            raise cause from None
        frames = traceback.extract_tb(error.__traceback__)
        if not set(Path(frames[-1].filename).parts) & set(_PARSERS):
            raise
        raise UserError(one_line(str(error))) from error


def check_objects(given: Any, where: str = "") -> None:
    """Check what the parser lets through: null, or a plain value, where an object of this package takes neither.

    Args:
        given: parsed settings, or a value in them.
        where: its dotted name.

    Raises:
        UserError: names the first such setting.
    """
    if isinstance(given, list):
        for i, item in enumerate(given):
            check_objects(item, f"{where}.{i}")
    if not isinstance(given, Namespace):
        return
    kind = _imported(given.class_path) if isinstance(given.get("class_path"), str) else None
    if inspect.isclass(kind) and kind.__module__.startswith(__package__ or "") and given.get("init_args"):
        hints, parameters = _hints(kind), inspect.signature(kind).parameters
        for name, value in vars(given.init_args).items():
            if name in hints and name in parameters:
                _check_value(value, hints[name], f"{where}.init_args.{name}".lstrip("."), parameters[name].default)
    for name, value in vars(given).items():
        check_objects(value, f"{where}.{name}".lstrip("."))


def _check_value(value: Any, hint: Any, where: str, default: Any) -> None:
    kinds = _kinds(hint)
    if value is None and default is not None and not {Any, type(None)} & {*kinds}:
        raise UserError(f"{where}: got null, expected {_shown(hint)}; leave it out for its default, if it has one")
    if dataclasses.is_dataclass(kinds[0]) and isinstance(value, bool | int | float | str | list):
        names = ", ".join(_names(kinds[0]))
        raise UserError(f"{where}: got {shown(value)}, expected settings, a line each below it: {names}")


def _shown(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")


def user_error(error: BaseException) -> UserError | None:
    """Return the `UserError` from which `error` arose, if there is one."""
    arose_from: BaseException | None = error
    while arose_from is not None and not isinstance(arose_from, UserError):
        arose_from = arose_from.__cause__ or arose_from.__context__
    return arose_from


def one_line(message: str) -> str:
    r"""Join the lines that name the culprit, and suggest the nearest known name for a misspelt key.

    >>> one_line("Errors:\n  - Option 'sed' is not accepted\n")
    "Option 'sed' is not accepted; see --print_config for the keys there are"
    """
    lines = [line.strip() for line in message.splitlines()]
    kept = [line for line in lines if line and not _NOISE.match(line)]
    text = " ".join(line.removeprefix("- ") for line in kept)
    got = next((value[1] for line in lines if (value := _VALUE.match(line))), None)
    text = text if got is None else f"{text}; got {got}"
    text = text if len(text) <= 500 else text[:497] + "..."
    if "arguments are required" in text:
        return f"{text}; give them in a YAML file, with --config, or as arguments of their own"
    rejected = _REJECTED.search(text)
    return text if rejected is None else text + _hint(text[: rejected.start()], rejected)


def _hint(before: str, rejected: re.Match[str]) -> str:
    """Return the nearest known name, or all there are; `before` says of what class the rejected key is."""
    known: list[str] = []
    word = ""
    classes = list(_CLASS.finditer(before))
    if classes:
        known, word = _names_beside(_imported(classes[-1][1]), _path(before[classes[-1].end() :], rejected))
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; expected one of {', '.join(known)}" if known else "; see --print_config for the keys there are"


def _path(within: str, rejected: re.Match[str]) -> list[str]:
    """Return the words from the arguments of a class to the rejected key."""
    found = rejected.groupdict()
    if found["of_group"]:
        return [*found["group"].split("."), *found["of_group"].split(".")]
    if found["of_mapping"]:  # of the type of the key whose value it is in
        return [*_KEY.findall(within)[-1:], found["of_mapping"]]
    return (found["key"] or found["argument"]).split(".")


def _names_beside(kind: Any, path: list[str]) -> tuple[list[str], str]:
    """Return the names that the last known class on the path has, and the word that is none of them."""
    for word in path[:-1]:
        inner = next((each for each in _kinds(_hints(kind).get(word)) if _names(each)), None)
        if inner is None:
            return _names(kind), word
        kind = inner
    return _names(kind), path[-1]


def _imported(class_path: str) -> Any:
    """Return a class; None where it cannot be imported, as in a misspelt path."""
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _names(kind: Any) -> list[str]:
    """Return the names of the arguments of a class of this package or its user, or the keys of a typed dictionary."""
    if typing.is_typeddict(kind):
        return list(kind.__annotations__)
    if not inspect.isclass(kind) or kind.__module__ == "builtins":
        return []
    return [parameter for parameter in inspect.signature(kind).parameters if parameter != "self"]


def _hints(kind: Any) -> dict[str, Any]:
    """Return name -> type of the arguments of a class; none where a type is not known outside of its module."""
    try:
        return typing.get_type_hints(kind.__init__)
    except (NameError, AttributeError, TypeError):
        return {}


def _kinds(hint: Any) -> list[Any]:
    """Return the types of a union, or the one that there is."""
    return list(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]
