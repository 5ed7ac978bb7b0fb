"""Which arguments a function that the user wrote takes, and whether they can be given."""

import inspect
from collections.abc import Callable, Collection
from inspect import Parameter
from typing import Any

from grpovi_lightning.errors import UserError

_ALWAYS_GIVEN = ("prompts", "completions", "completion_ids")
STATE = "trainer_state"
_NOT_GIVEN = ("log_extra", "log_metric")
"""Arguments that TRL's trainer has and this package has not."""
_ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def accepted_arguments(
    name: str, function: Callable[..., Any], columns: Collection[str], where: str, kwargs: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Return which of prompts, completions, completion_ids, trainer_state and the columns a reward function takes.

    Args:
        name: what messages call the function.
        function: with `**columns` it takes all, but `trainer_state` only by that name; if Python does not know its
            parameters, it gets all that have an entry for each completion.
        columns: those that the prompts bring.
        where: what messages call the place of the columns.
        kwargs: arguments that come from the settings.

    Returns:
        Arguments to pass by their places, and arguments to pass by their names; without `kwargs`.

    Raises:
        UserError: an argument without a default is none of these, a column has the name of another argument, or the
            function takes none of what describes completions.
    """
    _check_columns(name, columns, where, kwargs)
    given = [*_ALWAYS_GIVEN, *columns]
    parameters = parameters_of(function)
    if parameters is None:
        return [], given
    if any(parameter.name == STATE for parameter in parameters):
        given.append(STATE)
    for parameter in parameters:
        required = parameter.default is Parameter.empty and parameter.kind not in _ANY_NUMBER
        if required and parameter.name not in given and parameter.name not in kwargs:
            raise UserError(_missing(name, parameter.name, columns, where))
    places = [p.name for p in parameters if p.kind is Parameter.POSITIONAL_ONLY]
    absent = next((i for i, place in enumerate(places) if place not in given), len(places))
    named = [p.name for p in parameters if p.kind in _BY_NAME]
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        named = [argument for argument in given if argument not in places[:absent]]
    taken = places[:absent], [argument for argument in given if argument in named]
    if not any(taken):
        raise UserError(
            f"reward function {name} takes none of {', '.join(given)}, so it cannot score completions; if it returns "
            "the function that does, name it as `factory` instead of `function`"
        )
    return taken


def _check_columns(name: str, columns: Collection[str], where: str, kwargs: Collection[str]) -> None:
    for column in columns:
        if column in (*_ALWAYS_GIVEN, STATE):
            raise UserError(
                f"column {column!r} of {where} has the name of an argument of every reward function; "
                "rename it, or list the columns to hand over in the data's `columns`"
            )
        if column in kwargs:
            raise UserError(
                f"reward function {name}: kwargs has {column!r}, which is also a column of {where}; rename the column, "
                "or leave one of the two out"
            )


def _missing(name: str, argument: str, columns: Collection[str], where: str) -> str:
    if argument in _NOT_GIVEN:
        return (
            f"reward function {name} needs the argument {argument!r}, which TRL's trainer gives and this one does not; "
            "give it the default None, and log numbers as a reward of weight 0 or as a metric of the evaluation"
        )
    return (
        f"reward function {name} needs the argument {argument!r}, but the columns of {where} are "
        f"{', '.join(columns) or 'none'}; rename one, add it to the data's `columns`, give it in `kwargs`, or give the "
        "argument a default"
    )


def check_kwargs(what: str, function: Callable[..., Any], kwargs: Collection[str]) -> None:
    """Check the keyword arguments that settings give to a function.

    Raises:
        UserError: the function does not take one by its name, or a rollout gives it.
    """
    parameters = parameters_of(function)
    for name in kwargs:
        if name in (*_ALWAYS_GIVEN, STATE):
            raise UserError(f"{what}: kwargs has {name!r}, which every reward function gets by itself; leave it out")
        if parameters is not None and not _takes(parameters, name):
            own = [p.name for p in parameters if p.kind in _BY_NAME and p.name not in (*_ALWAYS_GIVEN, STATE)]
            raise UserError(
                f"{what}: kwargs has {name!r}, which it does not take by name, expected some of "
                f"{', '.join(own) or 'none'}; look at how it is defined"
            )


def _takes(parameters: list[Parameter], name: str) -> bool:
    return any(p.kind is Parameter.VAR_KEYWORD or (p.kind in _BY_NAME and p.name == name) for p in parameters)


def parameters_of(function: Callable[..., Any]) -> list[Parameter] | None:
    """Return the parameters of a callable; None where Python does not know them, as of some built-in functions."""
    try:
        found = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        found = None
    # A wrapper that hands on whatever it gets takes what the wrapped function takes; other wrappers have their own.
    hands_on = found is None or tuple(parameter.kind for parameter in found) == _ANY_NUMBER
    if hands_on and hasattr(function, "__wrapped__"):
        return parameters_of(function.__wrapped__)  # type: ignore[attr-defined]
    return found
