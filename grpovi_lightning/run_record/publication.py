"""What of a record others may see: settings without the folders of a machine and without secrets."""

import os
import re
from pathlib import Path
from typing import Any

HIDDEN = "(hidden)"
"""Stands for the value of a setting that is a secret by its name or form."""

_SECRET_NAME = re.compile(
    r"(.*_)?(api_?key|access_key|password|passwd|secret|credentials?)|((hf|auth|access|api)_)?token"
)
_SECRET_FORM = re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{16,}")
_END_OF_PATH = r"(?:/[^\s\"'`,;:|<>]*)?(?![\w-])"


def public(value: Any) -> Any:
    """Return settings as others may see them; what is read is left as it is.

    A path below the current folder becomes relative. Of another absolute path, or one in the home folder, the last
    part stays. Text that is no path, such as `/no_think`, stays, and so does what only looks like a secret's name,
    such as `max_tokens`.

    Args:
        value: text, or lists and mappings that hold some.

    >>> public({"path": "/data/alice/sets/train.jsonl", "api_key": "abc", "max_tokens": 5, "system": "/no_think"})
    {'path': 'train.jsonl', 'api_key': '(hidden)', 'max_tokens': 5, 'system': '/no_think'}
    """
    if isinstance(value, str):
        return _SECRET_FORM.sub(HIDDEN, _without_folders(value))
    if isinstance(value, list):
        return [public(item) for item in value]
    if isinstance(value, dict):
        return {
            public(key): HIDDEN if item and _is_secret(key) and isinstance(item, str) else public(item)
            for key, item in value.items()
        }
    return value


def _is_secret(name: Any) -> bool:
    return isinstance(name, str) and _SECRET_NAME.fullmatch(name.lower()) is not None


def _without_folders(text: str) -> str:
    if text.startswith("/") and text.strip("/").count("/") and "\n" not in text:
        return _placed(text)
    for folder in (os.getcwd(), str(Path.home())):
        if folder != "/":
            text = re.sub(rf"(?<![\w.-]){re.escape(folder)}{_END_OF_PATH}", lambda found: _placed(found[0]), text)
    return text


def _placed(path: str) -> str:
    """Return an absolute path relative to the current folder where it is below it, else its last part.

    Relative to a folder that the home folder is in, such as `/`, a path would name the user.
    """
    home, here = Path.home(), os.getcwd()
    for folder in (here, os.path.realpath(here)):
        if Path(path).is_relative_to(folder) and Path(folder) not in home.parents:
            return str(Path(path).relative_to(folder))
    return "~" if Path(path) == home else Path(path).name
