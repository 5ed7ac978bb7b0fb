"""Locks of the operating system, which end with the process that holds them, however that ends."""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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
    with _opened(folder) as file:
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
        if not _is_there(file):  # a run that was refused has removed it, with all that it wrote
            raise RecordError(f"run folder {folder}: another process has just left it; give the same command again")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _opened(folder: Path) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / LOCK_FILE).open("a+", encoding="ascii")


def _is_there(file: TextIO) -> bool:
    try:
        return os.path.samestat(os.stat(file.name), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
