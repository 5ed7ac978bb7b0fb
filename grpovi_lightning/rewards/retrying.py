"""Asking once more: what a call does whose server is away for a while."""

import builtins
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import sleep
from typing import Any, TypeVar

from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.rewards.imports import imported

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Retry:
    """Calls a reward function again after errors that may pass, such as those of a server that is started anew.

    The waits double: with the defaults they are 1, 2, 4, 8, 16 and 32 seconds, so a server may be away for a minute.

    Attributes:
        attempts: how often a call is made at most.
        first_wait: seconds between the first two.
        longest_wait: seconds that no wait exceeds.
        errors: names of the exceptions after which a call is made again: built-in ones, or import paths such as
            `httpx.TransportError`; subclasses count. After any other error the run stops at once. A call that exceeds
            its `time_limit` counts as a TimeoutError.
    """

    attempts: int = 7
    first_wait: float = 1.0
    longest_wait: float = 60.0
    errors: list[str] = field(default_factory=lambda: ["ConnectionError", "TimeoutError"])

    def __post_init__(self) -> None:
        at_least_one("retry.", attempts=self.attempts)
        for name in ("first_wait", "longest_wait"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"retry.{name}: got {value}, expected a finite number of seconds of at least 0")
        if not self.errors:
            raise UserError("retry.errors: got none, expected names such as ConnectionError; or leave `retry` out")
        for name in self.errors:
            _kind(name)

    def call(self, what: str, function: Callable[[], Result]) -> Result:
        """Return what the function gives, or raise what it raises at last; `what` names it in messages."""
        number = 1
        while True:
            try:
                return function()
            except Exception as error:
                pause = self._pause(what, number, error)
            sleep(pause)
            number += 1

    async def awaited(self, what: str, function: Callable[[], Awaitable[Result]], wait: Callable[..., Any]) -> Result:
        """Do the same as `call` with an `async` function; `wait` is asyncio's `sleep`."""
        number = 1
        while True:
            try:
                return await function()
            except Exception as error:
                pause = self._pause(what, number, error)
            await wait(pause)
            number += 1

    def covers(self, error: BaseException) -> bool:
        """Tell whether a call is made again after this error."""
        return isinstance(error, tuple(map(_kind, self.errors)))

    @property
    def waits(self) -> list[float]:
        """Seconds between the attempts."""
        return [min(self.first_wait * 2.0**i, self.longest_wait) for i in range(self.attempts - 1)]

    def _pause(self, what: str, number: int, error: Exception) -> float:
        """Return the seconds to wait before the next attempt; raise the error if there is none."""
        if number >= self.attempts or not self.covers(error):
            raise error
        pause = self.waits[number - 1]
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        _log.warning("%s: attempt %d of %d: %s; again in %g s", what, number, self.attempts, said, pause)
        return pause


def _kind(name: str) -> type[BaseException]:
    """Return the exception of that name."""
    found = imported(name, "retry.errors") if "." in name else getattr(builtins, name, None)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise UserError(f"retry.errors: got {name!r}, expected the name of an exception such as ConnectionError")
    return found
