"""Coroutines that run while the process computes something else."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import cache
from typing import Any


def started(call: Callable[[], Awaitable[Any]]) -> Future[Any]:
    """Let an `async` function run in the background from now on; `result_of` waits for it."""
    return asyncio.run_coroutine_threadsafe(_outcome(call), _loop(os.getpid()))


def result_of(running: Future[Any]) -> Any:
    """Return what a started function gave, or raise what it raised; it is cancelled if the wait is interrupted."""
    try:
        value, error = running.result()
    except BaseException:
        running.cancel()
        raise
    if error is not None:
        raise error
    return value


async def _outcome(call: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    try:
        return await call(), None
    except BaseException as error:  # SystemExit would end the loop, and a future makes other errors of some
        return None, error


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, which a fork does not take along.

    It has a thread of its own, because the caller may be inside a running loop, as in a notebook. It is one for all
    steps, because clients that are kept between calls belong to the loop that they were first used in.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"coroutines of process {process}", daemon=True).start()
    return loop
