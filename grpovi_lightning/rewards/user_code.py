"""Functions that the user wrote: found, made, and called."""

import importlib
import inspect
import sys
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.randomness import HELD_OUT_STEP, INITIAL_STEP
from grpovi_lightning.rewards import background
from grpovi_lightning.rewards.arguments import check_kwargs
from grpovi_lightning.structures import Rollout

_CALLERS = (__file__, background.__file__)
"""Their frames say nothing about where an error arose."""


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


def made_function(path: str, kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the reward function that the factory at `package.module.name` makes.

    Raises:
        UserError: there is no such factory, it does not take these arguments, it raises an error, or it makes something
            else.
    """
    factory = import_function(path)
    check_kwargs(f"reward factory {path}", factory, kwargs)
    try:
        made = factory(**kwargs)
    except Exception as error:
        raise UserError(f"reward factory {path} raised {_in_words(error)}; look at `kwargs`") from error
    if not callable(made):
        raise UserError(
            f"reward factory {path}: got a {type(made).__name__} from it, expected a reward function; if it scores "
            "completions itself, name it as `function`"
        )
    return made


def call_user_code(what: str, rollout: Rollout, function: Callable[..., Any], *places: Any, **names: Any) -> Any:
    """Call a function that the user wrote to score or compare the completions of a rollout; await an `async` one.

    Raises:
        TrainingError: the function raised an error, which the message has in one line, with the prompts of the call.
    """
    return start_user_code(what, rollout, partial(function, *places, **names))()


def start_user_code(
    what: str, rollout: Rollout, call: Callable[[], Any], seconds: float | None = None
) -> Callable[[], Any]:
    """Return what gives the result of `call_user_code`: an `async` function runs from now on, another when asked.

    Raises, when asked:
        TrainingError: as `call_user_code` does, and where it takes longer than so many seconds.
    """
    running, began = background.started(call) if is_async(call) else None, monotonic()

    def result() -> Any:
        if running is not None:
            return background.result_of(running, seconds and max(0.0, began + seconds - monotonic()))
        if seconds is None:
            return _awaited(call())
        return background.result_of(background.started_thread(lambda: _awaited(call())), seconds)

    return partial(_in_one_line, what, rollout, result, seconds)


def _in_one_line(what: str, rollout: Rollout, result: Callable[[], Any], seconds: float | None) -> Any:
    try:
        return result()
    except TrainingError:
        raise
    except (Exception, CancelledError) as error:
        numbers = rollout.prompts.indices.tolist()
        listed = ", ".join(map(str, numbers[:8])) + ", ..." * (len(numbers) > 8)
        named = {HELD_OUT_STEP: "the evaluation", INITIAL_STEP: "the initial sample"}
        rows = f"rows of {named.get(rollout.step, f'step {rollout.step}')}: {listed}"
        if isinstance(error, background.TookTooLong):
            raise TrainingError(f"{what} gave no answer within its time_limit of {seconds:g} s; {rows}") from error
        raise TrainingError(f"{what} raised {_in_words(error)}; {rows}") from error


def _awaited(value: Any) -> Any:
    """Return the value, or what it gives where a plain wrapper of an `async` function returned it."""
    return background.result_of(background.started(lambda: value)) if inspect.isawaitable(value) else value


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a function, or the call of an object, is an `async` one."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _in_words(error: BaseException) -> str:
    """Return the error as one line, with the line of code: the user's own if there is one, else where it arose."""
    message = " ".join(str(error).split())[:300]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in _CALLERS]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    if not frames or isinstance(error, SyntaxError):  # whose message has its own place
        return text
    own = [frame for frame in frames if not frame.filename.startswith((sys.prefix, sys.base_prefix))]
    return f"{text} ({(own or frames)[-1].filename}, line {(own or frames)[-1].lineno})"
