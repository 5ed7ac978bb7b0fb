"""All classes of a room, made with the settings that their signatures ask for: a new file is covered without a list."""

import importlib
import inspect
import itertools
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from grpovi_lightning import adjustment, advantages
from grpovi_lightning.adjustment import Adjustment, RewardRange, SigmoidRange
from grpovi_lightning.advantages import Advantage
from grpovi_lightning.concrete import is_concrete

SETTINGS = {float: lambda: 0.5, int: lambda: 8, RewardRange: lambda: SigmoidRange(0.0, 1.0)}
"""Type of a setting without a default -> a value of it."""


def classes(base, room) -> list[type]:
    """The concrete subclasses of `base` that the files of a room define, in the order of their names."""
    modules = [importlib.import_module(f"{room.__name__}.{info.name}") for info in pkgutil.iter_modules(room.__path__)]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    }
    return sorted(filter(is_concrete, found), key=lambda cls: cls.__name__)


def variants(base, room) -> dict[str, Callable[[], Any]]:
    """name -> makes an object of each class, and of each choice that its signature names one by one."""
    made: dict[str, Callable[[], Any]] = {}
    for cls in classes(base, room):
        hints, given, choices = get_type_hints(cls.__init__), {}, {}
        for name, parameter in inspect.signature(cls).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):  # of a class without `__init__`
                continue
            if get_origin(hints[name]) is Literal:
                choices[name] = get_args(hints[name])
            elif parameter.default is parameter.empty:
                given[name] = SETTINGS[hints[name]]
        for chosen in itertools.product(*choices.values()):
            made["-".join([cls.__name__, *chosen])] = partial(
                _make, cls, given, dict(zip(choices, chosen, strict=True))
            )
    return made


def _make(cls, given, chosen):
    return cls(**{name: value() for name, value in given.items()}, **chosen)


ADVANTAGES = variants(Advantage, advantages)
ADJUSTMENTS = variants(Adjustment, adjustment)
