"""Functions that the user wrote: made, and called."""

import asyncio
import inspect
import math
import os
from asyncio import CancelledError, Semaphore
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from grpovi_lightning import background
from grpovi_lightning.errors import TrainingError, UserError, at_least_one
from grpovi_lightning.randomness import HELD_OUT_STEP, INITIAL_STEP
from grpovi_lightning.rewards.arguments import check_kwargs
from grpovi_lightning.rewards.imports import imported, in_words
from grpovi_lightning.rewards.retrying import Retry
from grpovi_lightning.structures import Rollout


@dataclass(frozen=True)
class Patience:
    """How long calls of a function that the user wrote are waited for.

    Attributes:
        time_limit: seconds that a call may take; None: as long as it likes.
        retry: after which errors a call is made again; None: after none.
        max_concurrency: how many calls run at a time, in the background; None: there is one call, which runs in the
            background if it is `async`, and in the caller's thread otherwise.
    """

    time_limit: float | None = None
    retry: Retry | None = None
    max_concurrency: int | None = None

    def __post_init__(self) -> None:
        at_least_one("reward function: ", max_concurrency=self.max_concurrency)
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise UserError(
                f"reward function: got time_limit {self.time_limit}, expected seconds above 0; leave it out for none"
            )

    def result(self, what: str, call: Callable[[], Any]) -> Any:
        """Return what a call gives that begins now, in this thread unless its time is limited."""
        return (
            _once(call, self.time_limit)
            if self.retry is None
            else self.retry.call(what, lambda: _once(call, self.time_limit))
        )

    def start(self, what: str, calls: Sequence[Callable[[], Any]], before: int = 0) -> Callable[[], list[Any]]:
        """Let calls run in the background from now on, behind so many others; return what waits for them."""
        began, each = monotonic(), [partial(self._awaited, what, call) for call in calls]
        limit = self.max_concurrency
        places = Semaphore(len(calls)) if limit is None else background.places(os.getpid(), what, limit)
        running = background.started(lambda: background.all_of(each, places))
        longest = self._longest(before + len(calls))
        return lambda: background.result_of(running, longest and max(0.0, began + longest - monotonic()))

    def attempts(self, error: BaseException) -> str:
        """Say how often a call was made that ended in this error; nothing where that was once."""
        again = self.retry is not None and self.retry.attempts > 1 and self.retry.covers(error)
        return f" in each of {self.retry.attempts} attempts" if again and self.retry else ""

    async def _awaited(self, what: str, call: Callable[[], Any]) -> Any:
        once: Callable[[], Awaitable[Any]] = partial(_answer, call, self.time_limit)
        return await (once() if self.retry is None else self.retry.awaited(what, once, asyncio.sleep))

    def _longest(self, n_calls: int) -> float | None:
        """Return the seconds that so many calls may take; a function that holds up all others is noticed, too."""
        if self.time_limit is None:
            return None
        retry = self.retry or Retry(attempts=1)
        rounds = math.ceil(n_calls / (self.max_concurrency or n_calls))
        return rounds * (retry.attempts * self.time_limit + sum(retry.waits))


def made_function(path: str, kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the reward function that the factory at `package.module.name` makes.

    Raises:
        UserError: there is no such factory, it does not take these arguments, it raises an error, or it makes something
            else.
    """
    factory = imported(path, "reward function")
    check_kwargs(f"reward factory {path}", factory, kwargs)
    try:
        made = factory(**kwargs)
    except Exception as error:
        raise UserError(f"reward factory {path} raised {in_words(error)}; look at `kwargs`") from error
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
    (result,) = start_user_code(what, rollout, [partial(function, *places, **names)])()
    return result


def start_user_code(
    what: str, rollout: Rollout, calls: Sequence[Callable[[], Any]], patience: Patience | None = None, before: int = 0
) -> Callable[[], list[Any]]:
    """Return what gives the result of each call: those in the background run from now on, others when asked.

    `before` is how many calls of the same function began before these, and may not be done yet.

    Raises, when asked:
        TrainingError: as `call_user_code` does, and where a call takes longer than it may.
    """
    patience = patience or Patience()
    if patience.max_concurrency is not None or is_async(calls[0]):
        result = patience.start(what, calls, before)
    else:
        result = lambda: [patience.result(what, call) for call in calls]  # noqa: E731
    return partial(_in_one_line, what, rollout, result, patience)


def _in_one_line(what: str, rollout: Rollout, result: Callable[[], list[Any]], patience: Patience) -> list[Any]:
    try:
        return result()
    except TrainingError:
        raise
    except (Exception, CancelledError) as error:
        numbers = rollout.prompts.indices.tolist()
        listed = ", ".join(map(str, numbers[:8])) + ", ..." * (len(numbers) > 8)
        named = {HELD_OUT_STEP: "the evaluation", INITIAL_STEP: "the initial sample"}
        rows = f"rows of {named.get(rollout.step, f'step {rollout.step}')}: {listed}"
        said = f"raised {in_words(error)}"
        if isinstance(error, background.TookTooLong):
            said = f"gave no answer within its time_limit of {patience.time_limit:g} s"
        raise TrainingError(f"{what} {said}{patience.attempts(error)}; {rows}") from error


def _once(call: Callable[[], Any], seconds: float | None) -> Any:
    if seconds is None:
        return _result(call)
    return background.result_of(background.started_thread(partial(_result, call)), seconds)


def _result(call: Callable[[], Any]) -> Any:
    """Return what a call gives; awaited where a plain wrapper of an `async` function returned it."""
    value = call()
    return background.result_of(background.started(lambda: value)) if inspect.isawaitable(value) else value


async def _answer(call: Callable[[], Any], seconds: float | None) -> Any:
    """Do the same as `_once`, for an `async` function or in a thread, while others are waited for."""
    if is_async(call):
        return await background.within(call(), seconds)
    value, error = await background.within(
        asyncio.wrap_future(background.started_thread(partial(_result, call))), seconds
    )
    if error is not None:
        raise error
    return value


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a function, or the call of an object, is an `async` one."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
