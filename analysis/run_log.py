"""What one run logged, whichever of the loggers that reports read it had."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import csv_logs, events, scalars
from analysis.scalar_cache import cached, keep
from analysis.scalars import DamagedLogError, RunScalars, ScalarLog, no_scalars, settled
from grpovi_lightning.run_record.layout import SCALARS_FILE


def _source_digest() -> bytes:
    """Return a digest of the code that reads logs: another version of it does not trust what this one kept."""
    modules = (csv_logs, events, scalars, sys.modules[__name__])
    return hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)).digest()


_READER = _source_digest()


def log_files(folder: Path) -> list[Path]:
    """Return the files that hold the scalars of the run in `folder`: of TensorBoard, or else of `CSVLogger`."""
    return events.event_files(folder) or csv_logs.csv_files(folder)


def mixed_loggers(folder: Path, loggers: Sequence[str]) -> bool:
    """Tell whether the last attempt of a run, which had `loggers`, wrote where `log_files` does not look."""
    return "CSVLogger" in loggers and "TensorBoardLogger" not in loggers and bool(events.event_files(folder))


def read_scalars(folder: Path) -> RunScalars:
    """Read every scalar that a run logged.

    A resumed run has several files and logs the steps after its checkpoint again; steps after the checkpoint that only
    an earlier attempt made do not count. What was read is kept in `SCALARS_FILE` of the folder, where that can be
    written, and found there as long as the bytes of the files are the same.

    Args:
        folder: A run directory.

    Returns:
        The scalars of all files together, or none and the reason where a file is damaged or cannot be read.
    """
    paths = log_files(folder)
    contents = []
    for path in paths:
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            return RunScalars(no_scalars(), damage=f"{path.name}: {error}")
    if not any(contents):
        return RunScalars(no_scalars())
    key = _key(paths, contents)
    found = cached(folder / SCALARS_FILE, key)
    if found is None:
        found = _parsed(paths, contents)
        keep(found, folder / SCALARS_FILE, key)
    return found


def _key(paths: Sequence[Path], contents: Sequence[bytes]) -> str:
    """Return a digest of all that the result depends on: of the bytes, since sizes and times may stay when they change.

    SHA-256 takes a second for a gigabyte, a thousandth of what reading it takes.
    """
    digest = hashlib.sha256(_READER)
    for path, content in zip(paths, contents, strict=True):
        digest.update(b"\0".join([path.parent.name.encode(), path.name.encode(), b""]))
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _parsed(paths: list[Path], contents: Sequence[bytes]) -> RunScalars:
    logs: list[ScalarLog] = []
    is_csv = paths[0].name == csv_logs.CSV_FILE
    for attempt, (path, content) in enumerate(zip(paths, contents, strict=True)):
        try:
            if is_csv:
                csv_logs.check_csv_files(paths)
            logs.append(csv_logs.read_csv_log(content, attempt) if is_csv else events.read_events(content))
        except DamagedLogError as error:
            return RunScalars(no_scalars(), damage=f"{path.name}: {error}")
    table = settled(logs)
    if is_csv:
        table["wall_time"] = float("nan")
    return RunScalars(table, torn_tail=paths[-1].name if logs[-1].is_torn else None)
