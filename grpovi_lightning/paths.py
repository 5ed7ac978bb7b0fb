"""Paths as people write them, and whether something can be written there."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpovi_lightning.errors import UserError


def expanded(value: Any) -> Any:
    """Return `value` with the home folder for `~` at the beginning of every path in it.

    Args:
        value: text, or lists, mappings and namespaces that hold some. Text with a `~` but no `/` is no path.

    >>> expanded({"a": ["x/~", "~"], "b": expanded("~/x") == str(Path.home() / "x")})
    {'a': ['x/~', '~'], 'b': True}
    """
    if isinstance(value, str):
        return os.path.expanduser(value) if "/" in value else value
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if isinstance(value, dict):
        return {key: expanded(item) for key, item in value.items()}
    if isinstance(value, Namespace):
        return type(value)(**{key: expanded(item) for key, item in vars(value).items()})
    return value


def expanded_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with the home folder for `~`, also in `--key=~/x`, which no shell expands."""
    parts = [argument.partition("=") if argument.startswith("--") else ("", "", argument) for argument in arguments]
    return [name + equals + expanded(value) for name, equals, value in parts]


def check_output(path: str | Path, setting: str) -> None:
    """Check that `path` is a folder that can be written to, or can be made; nothing is written.

    Args:
        path: the folder, which need not exist.
        setting: the name of what the user chose it with.

    Raises:
        UserError: it cannot hold anything.
    """
    there = os.path.abspath(path)
    try:
        while not _is_there(there):
            there = os.path.dirname(there)
        problem = None if os.path.isdir(there) else f"{there} is not a folder"
        if problem is None and not os.access(there, os.W_OK | os.X_OK):
            problem = f"no permission to write to {there}"
    except OSError as error:
        problem = f"{error.strerror}: {there}"
    if problem:
        raise UserError(f"{setting}: cannot write to {path}: {problem}; choose a folder that can be written to")


def _is_there(path: str) -> bool:
    """Tell whether there is something at `path`, be it a broken link."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
