"""Names of the user's code in settings: found, and what is said of code that fails."""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpovi_lightning.errors import UserError

CALLERS = tuple(str(Path(__file__).with_name(f"{name}.py")) for name in ("user_code", "background", "retrying"))
"""Files whose frames say nothing about where an error arose."""


def imported(path: str, what: str) -> Callable[..., Any]:
    """Return the callable at `package.module.name`; `what` begins the message of an error.

    >>> imported("math.sqrt", "reward function")(9.0)
    3.0

    Raises:
        UserError: the module or the name does not exist, or is no callable, or the module raises an error.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"{what}: got {path!r}, expected an import path such as my_rewards.accuracy")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} {path}: no module named {error.name!r}; run in the folder that holds it or install it"
        ) from error
    except (Exception, SystemExit) as error:  # SystemExit: a script that runs while it is imported
        raise UserError(
            f"{what} {path}: module {module_name} cannot be imported: {in_words(error)}; mend it"
        ) from error
    if not hasattr(module, name):
        raise UserError(f"{what} {path}: module {module_name} has no {name!r}")
    found = getattr(module, name)
    if not callable(found):
        raise UserError(f"{what} {path}: got a {type(found).__name__}, expected a function")
    return found


def in_words(error: BaseException) -> str:
    """Return the error as one line, with the line of code: the user's own if there is one, else where it arose."""
    message = " ".join(str(error).split())[:300]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in CALLERS]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    if not frames or isinstance(error, SyntaxError):  # whose message has its own place
        return text
    own = [frame for frame in frames if not frame.filename.startswith((sys.prefix, sys.base_prefix))]
    return f"{text} ({(own or frames)[-1].filename}, line {(own or frames)[-1].lineno})"
