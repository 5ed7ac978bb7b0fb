"""Who works in a run's folder: at most one process, and its workers."""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpovi_lightning.run_record.layout import RecordError

LOCK_FILE = ".lock"


@contextmanager
def held_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made where it is not there.

    The system gives a lock up when the process ends, however it does, so none is left behind.

    Raises:
        RecordError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RecordError(
                f"run folder {folder}: process {file.read().strip() or '?'} works in it; end that one, or choose "
                "another trainer.default_root_dir"
            ) from error
        except OSError as error:  # a file system without locks
            warnings.warn(f"{file.name} cannot be locked ({error}): let no other process work there", stacklevel=3)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
