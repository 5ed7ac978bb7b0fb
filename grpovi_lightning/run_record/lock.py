"""Locks of the operating system, which end with the process that holds them, however that ends."""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpovi_lightning.run_record.layout import RecordError

LOCK_FILE = ".lock"


def acquire(descriptor: int) -> bool:
    """Take the lock of an open file; return whether nobody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made where it is not there: one process works in it, and its workers.

    Raises:
        RecordError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="ascii") as file:
        try:
            free = acquire(file.fileno())
        except OSError as error:  # a file system without locks
            warnings.warn(f"{file.name} cannot be locked ({error}): let no other process work there", stacklevel=3)
            free = True
        if not free:
            file.seek(0)
            raise RecordError(
                f"run folder {folder}: process {file.read().strip() or '?'} works in it; end that one, or choose "
                "another trainer.default_root_dir"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
