"""What is computed while this process does something else."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(compute: Callable[[], T]) -> Callable[[], T]:
    """Call `compute` in a thread, which ends with the process; return what waits for its value, or raises its error."""
    # The threads of `concurrent.futures` would hold up a process that ends.
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(compute())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="drawing ahead", daemon=True).start()
    return future.result
