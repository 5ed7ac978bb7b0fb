"""A grid of settings: from `values:` of an arm in a study file to its points, each of which runs as an arm."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpovi_lightning.run_record.layout import RecordError

Value = bool | int | float | str | None
Grid = Mapping[str, tuple[Value, ...]]
"""Dotted key of a setting -> its values, in the order of the study file."""

LONGEST_NAME = 200
"""Characters of a point's name, which is a folder's and part of a lock file's."""

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_OF_THE_STUDY = ("seed_everything", "trainer.default_root_dir", "study_dir", "config", "ckpt_path", "restart")


@dataclass(frozen=True)
class Point:
    """One point of an arm's grid."""

    arm: str
    """The arm, by its name in the study file."""
    baseline: str | None
    """The arm that this arm is paired with, by its name in the study file."""
    values: Mapping[str, Value]
    """Dotted key -> value."""

    @property
    def label(self) -> str:
        """The values, short enough for a picture.

        >>> Point("grpo", None, {"model.init_args.loss.init_args.beta": 0.04, "trainer.max_steps": 60}).label
        'beta=0.04, max_steps=60'
        """
        return ", ".join(f"{short}={text}" for short, text in _texts(self.values))

    @property
    def name(self) -> str:
        """The name of its runs' folder.

        >>> Point("grpo", None, {"model.init_args.optimizer.init_args.lr": 1e-4}).name
        'grpo@lr=0.0001'
        """
        return f"{self.arm}@" + ",".join(f"{short}={_safe(text)}" for short, text in _texts(self.values))

    @property
    def arguments(self) -> tuple[str, ...]:
        """What sets the values on the command line of a run."""
        return tuple(part for key, value in self.values.items() for part in (f"--{key}", _argument(value)))

    def agrees(self, values: Mapping[str, Value]) -> bool:
        """Tell whether the point has these values, whatever else it sets."""
        return all(key in self.values and text_of(self.values[key]) == text_of(value) for key, value in values.items())


def read_grid(values: Mapping[str, Any], where: str) -> dict[str, tuple[Value, ...]]:
    """Check `values:` of an arm. Text that is a number counts as one: YAML reads `1e-4`, without a dot, as text.

    Args:
        values: dotted key -> list of values.
        where: begins every message.

    Raises:
        RecordError: no key, a key that is none, no list, or a value that is twice there or cannot be set.
    """
    if not values:
        raise RecordError(f"{where} is empty, expected settings such as `model.init_args.group_size: [4, 8]`")
    grid = {}
    for key, listed in values.items():
        if not _KEY.fullmatch(key):
            raise RecordError(f"{where}: {key!r} is no setting; expected a name such as model.init_args.group_size")
        if key in _OF_THE_STUDY:
            raise RecordError(f"{where}: {key} is set by the study; leave it out")
        if not isinstance(listed, list) or not listed:
            raise RecordError(f"{where}: {key} is {listed!r}, expected a list of values such as [1e-4, 3e-4]")
        grid[key] = tuple(_value(each, f"{where}: {key}") for each in listed)
        _check_distinct(grid[key], f"{where}: {key}")
    return grid


def points_of(arm: str, baseline: str | None, grid: Grid, where: str) -> list[Point]:
    """Return all points of a grid; the values of the last key change fastest. `where` begins the error message."""
    points = [
        Point(arm, baseline, dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())
    ]
    longest = max((point.name for point in points), key=len)
    if len(longest) > LONGEST_NAME:
        raise RecordError(
            f"{where}: the name of a run's folder would have {len(longest)} characters, expected at most "
            f"{LONGEST_NAME} ({longest[:40]}...); give fewer settings or shorter values"
        )
    return points


def values_of(name: str) -> dict[str, str]:
    """Return the values in the name of a point's folder, by their short names; none for another arm.

    >>> values_of("grpo@lr=0.0001,beta=0"), values_of("grpo")
    ({'lr': '0.0001', 'beta': '0'}, {})
    """
    _, at, values = name.rpartition("@")
    parts = [part.partition("=") for part in values.split(",")] if at else []
    return {short: text for short, equals, text in parts if equals}


def text_of(value: Value) -> str:
    """Return a value as it is shown; equal values have equal texts.

    >>> text_of(1e-4), text_of(3e-6), text_of(0.0), text_of(True), text_of(None)
    ('0.0001', '3e-6', '0', 'true', 'null')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return re.sub(r"e\+?(-?)0*", r"e\1", repr(value + 0.0)).removesuffix(".0")  # + 0.0: no minus before a zero
    return str(value)


def _value(value: Any, where: str) -> Value:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value) if value.isdigit() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{where}: got {value}, expected finite numbers")
    if value is not None and not isinstance(value, bool | int | float | str):
        raise RecordError(f"{where}: got {value!r}, expected numbers, text, true, false or null")
    return value


def _check_distinct(values: Sequence[Value], where: str) -> None:
    texts = [text_of(value) for value in values]
    for text in texts:
        if texts.count(text) > 1:
            raise RecordError(f"{where}: {text} is given twice; keep one of them")
    folders = [_safe(text).casefold() for text in texts]
    for text, folder in zip(texts, folders, strict=True):
        if folders.count(folder) > 1 or not folder:
            raise RecordError(f"{where}: {text!r} and another value would share the folder name {_safe(text)!r}")


def _texts(values: Mapping[str, Value]) -> list[tuple[str, str]]:
    """Return (short name, text) of each setting: the last part of its key, or more parts where two share it."""
    parts = {key: [part for part in key.split(".") if part != "init_args"] for key in values}
    shown = []
    for key, own in parts.items():
        others = [other for name, other in parts.items() if name != key]
        enough = (n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        shown.append((".".join(own[-next(enough, len(own)) :]), text_of(values[key])))
    return shown


def _safe(text: str) -> str:
    """Return text that can be part of a folder's name: of a class, its name without its package."""
    name = text.rpartition(".")[2]
    is_class = _KEY.fullmatch(text) and name[0].isupper()
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name if is_class else text).strip(".")


def _argument(value: Value) -> str:
    if isinstance(value, float) and "e" in repr(value):
        mantissa, _, exponent = repr(value).partition("e")
        # YAML takes 1e-06 for text and 1.0e-06 for a number.
        return f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent}"
    return repr(value) if isinstance(value, float) else text_of(value)
