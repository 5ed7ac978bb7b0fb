"""Coroutines and functions that run while the process computes something else."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import cache
from typing import Any


class TookTooLong(TimeoutError):
    """What was started is not done in time."""


def started(call: Callable[[], Awaitable[Any]]) -> Future[Any]:
    """Let an `async` function run in the background from now on; `result_of` waits for it."""
    return asyncio.run_coroutine_threadsafe(_outcome(call), _loop(os.getpid()))


def started_thread(call: Callable[[], Any]) -> Future[Any]:
    """Let a function run in a thread of its own, which a process that ends does not wait for."""
    running: Future[Any] = Future()

    def run() -> None:
        try:
            outcome = call(), None
        except BaseException as error:
            outcome = None, error
        with suppress(InvalidStateError):  # nobody waits for it any more
            running.set_result(outcome)

    threading.Thread(target=run, name="background", daemon=True).start()
    return running


def result_of(running: Future[Any], seconds: float | None = None) -> Any:
    """Return what a started function gave, or raise what it raised; it is cancelled if the wait is interrupted.

    Raises:
        TookTooLong: longer than so many seconds. A thread goes on, and nobody hears of it.
    """
    try:
        value, error = running.result(seconds)
    except TimeoutError as error:
        running.cancel()
        raise TookTooLong from error
    except BaseException:
        running.cancel()
        raise
    if error is not None:
        raise error
    return value


@cache
def places(process: int, what: str, limit: int) -> asyncio.Semaphore:
    """Return the places of a function of which at most `limit` calls run at a time, whenever they began."""
    return asyncio.Semaphore(limit)


async def all_of(calls: Sequence[Callable[[], Awaitable[Any]]], places: asyncio.Semaphore) -> list[Any]:
    """Return what each call gives, as many of them running at a time as there are places.

    After the first error no further one begins, those that run are cancelled, and it is raised.
    """
    failed = asyncio.Event()

    async def one(call: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
        async with places:
            if failed.is_set():
                return None, asyncio.CancelledError()
            value, error = await _outcome(call)
            if error is not None:
                failed.set()
            return value, error

    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    try:
        for next_done in asyncio.as_completed(tasks):
            if (error := (await next_done)[1]) is not None:
                raise error
        return [task.result()[0] for task in tasks]
    finally:
        for task in tasks:
            task.cancel()


async def within(waited_for: Awaitable[Any], seconds: float | None) -> Any:
    """Return what is waited for.

    Raises:
        TookTooLong: longer than so many seconds.
    """
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            return await waited_for
    except TimeoutError as error:
        if clock.expired():
            raise TookTooLong from error
        raise


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
