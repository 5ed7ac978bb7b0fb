"""Functions that the user wrote: found, given the arguments that they take, and called."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Collection
from inspect import Parameter
from typing import Any

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.randomness import HELD_OUT_STEP, INITIAL_STEP
from grpovi_lightning.structures import Rollout

_ALWAYS_GIVEN = ("prompts", "completions", "completion_ids")
_ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def import_function(path: str) -> Callable[..., Any]:
    """Return the callable at `package.module.name`.

    >>> import_function("math.sqrt")(9.0)
    3.0

    Raises:
        UserError: the module or the name does not exist, or is no callable, or the module raises an error.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"reward function: got {path!r}, expected an import path such as my_rewards.accuracy")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"reward function {path}: no module named {error.name!r}; run in the folder that holds it or install it"
        ) from error
    except (Exception, SystemExit) as error:  # SystemExit: a script that runs while it is imported
        raise UserError(
            f"reward function {path}: module {module_name} cannot be imported: {_in_words(error)}; mend it"
        ) from error
    if not hasattr(module, name):
        raise UserError(f"reward function {path}: module {module_name} has no {name!r}")
    found = getattr(module, name)
    if not callable(found):
        raise UserError(f"reward function {path}: got a {type(found).__name__}, expected a function")
    return found


def accepted_arguments(
    name: str, function: Callable[..., Any], columns: Collection[str], where: str
) -> tuple[list[str], list[str]]:
    """Return which of prompts, completions, completion_ids and the columns a reward function takes.

    Args:
        name: what messages call the function.
        function: with `**columns` it takes all; if Python does not know its parameters, it gets all.
        columns: those that the prompts bring.
        where: what messages call the place of the columns.

    Returns:
        Arguments to pass by their places, and arguments to pass by their names.

    Raises:
        UserError: an argument without a default is none of these, or a column has the name of one that every function
            gets.
    """
    for column in columns:
        if column in _ALWAYS_GIVEN:
            raise UserError(
                f"column {column!r} of {where} has the name of an argument of every reward function; "
                "rename it, or list the columns to hand over in the data's `columns`"
            )
    given = [*_ALWAYS_GIVEN, *columns]
    parameters = _parameters(function)
    if parameters is None:
        return [], given
    for parameter in parameters:
        required = parameter.default is Parameter.empty and parameter.kind not in _ANY_NUMBER
        if required and parameter.name not in given:
            raise UserError(
                f"reward function {name} needs the argument {parameter.name!r}, but the columns of {where} are "
                f"{', '.join(columns) or 'none'}; rename one, add it to the data's `columns`, or give the argument "
                "a default"
            )
    places = [p.name for p in parameters if p.kind is Parameter.POSITIONAL_ONLY]
    absent = next((i for i, place in enumerate(places) if place not in given), len(places))
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return places[:absent], [argument for argument in given if argument not in places[:absent]]
    named = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    return places[:absent], [argument for argument in given if argument in named]


def call_user_code(what: str, rollout: Rollout, function: Callable[..., Any], *places: Any, **names: Any) -> Any:
    """Call a function that the user wrote to score or compare the completions of a rollout.

    Raises:
        TrainingError: the function raised an error, which the message has in one line, with the prompts of the call.
    """
    try:
        return function(*places, **names)
    except TrainingError:
        raise
    except Exception as error:
        numbers = rollout.prompts.indices.tolist()
        listed = ", ".join(map(str, numbers[:8])) + ", ..." * (len(numbers) > 8)
        named = {HELD_OUT_STEP: "the evaluation", INITIAL_STEP: "the initial sample"}
        when = named.get(rollout.step, f"step {rollout.step}")
        raise TrainingError(f"{what} raised {_in_words(error)}; rows of {when}: {listed}") from error


def _in_words(error: BaseException) -> str:
    """Return the error as one line, with the line of code: the user's own if there is one, else where it arose."""
    message = " ".join(str(error).split())[:300]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if not f.filename.startswith("<frozen")]
    if not frames or isinstance(error, SyntaxError):  # whose message has its own place
        return text
    own = [frame for frame in frames if not frame.filename.startswith((sys.prefix, sys.base_prefix))]
    return f"{text} ({(own or frames)[-1].filename}, line {(own or frames)[-1].lineno})"


def _parameters(function: Callable[..., Any]) -> list[Parameter] | None:
    """Return the parameters of a callable; None where Python does not know them, as of some built-in functions."""
    try:
        found = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        found = None
    # A wrapper that hands on whatever it gets takes what the wrapped function takes; other wrappers have their own.
    hands_on = found is None or tuple(parameter.kind for parameter in found) == _ANY_NUMBER
    if hands_on and hasattr(function, "__wrapped__"):
        return _parameters(function.__wrapped__)  # type: ignore[attr-defined]
    return found
