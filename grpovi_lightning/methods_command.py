"""The command `grpovi methods`: the methods that a run can be made of, from their classes."""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from grpovi_lightning import adjustment, advantages, losses, selection
from grpovi_lightning.concrete import is_concrete
from grpovi_lightning.one_line_parser import OneLineParser


class Room(NamedTuple):
    """Where methods of one kind are: the setting of `GRPOModule`, what it does, the package, and their base class."""

    setting: str
    what: str
    package: ModuleType
    base: type


class Method(NamedTuple):
    """One class: its name, the first line of its docstring, and the papers that the docstring names."""

    name: str
    summary: str
    sources: tuple[str, ...]


ROOMS = (
    Room("resampling", "which prompts are learned from", selection, selection.PromptSelection),
    Room("selection", "which of their completions are learned from", selection, selection.CompletionSelection),
    Room("adjustment", "rewards of a group -> adjusted rewards", adjustment, adjustment.Adjustment),
    Room("advantage", "adjusted rewards -> advantages", advantages, advantages.Advantage),
    Room("loss", "advantages and log-probabilities -> loss", losses, losses.PolicyLoss),
    Room("token_selection", "of `updates`: which tokens count in the loss", losses, losses.TokenSelection),
    Room("kl", "setting of a loss: what its penalty estimates", losses, losses.KLEstimator),
)


def methods(room: Room) -> Iterator[Method]:
    """Return what a room exports, in the order of the names."""
    for name in sorted(room.package.__all__):
        found = getattr(room.package, name)
        if isinstance(found, type) and issubclass(found, room.base) and is_concrete(found):
            text = found.__doc__ or ""
            sources = tuple(dict.fromkeys(re.findall(r"arXiv \d{4}\.\d{5}", text)))
            yield Method(name, text.strip().partition("\n")[0], sources)


def show(arguments: list[str]) -> None:
    """Print the methods of all rooms.

    Raises:
        UserError: there are arguments.
    """
    OneLineParser(
        prog="grpovi methods",
        description="Lists the methods that a run can be made of, by the setting that takes them, each with the first "
        "line of its docstring and its papers. Formulas, and what is a special case of what: docs/methods.md.",
    ).parse_args(arguments)
    for room in ROOMS:
        print(f"{room.setting}: {room.what}")
        for method in methods(room):
            further = [source for source in method.sources if source not in method.summary]
            print(f"  {method.name:<28}{method.summary}{' [' + ', '.join(further) + ']' if further else ''}")
