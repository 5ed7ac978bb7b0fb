"""metrics.csv of Lightning's `CSVLogger`: one file -> its scalars, with a check that the file is whole.

A run writes `<name>/version_<k>/metrics.csv`, one for each of its attempts: a row a call of the logger, with the step
and with empty cells for what was not logged then.
"""

import csv
import io
import re
from pathlib import Path

from analysis.scalars import DamagedLogError, Restart, ScalarLog
from grpovi_lightning.metric_keys import EVAL_PREFIX

CSV_FILE = "metrics.csv"
_STEP = "step"
_VERSION = re.compile(r"version_(\d+)")


def csv_files(folder: Path) -> list[Path]:
    """Return the CSV logs of the run in `folder`, in the order of its attempts."""
    found = [path for level in ("", "*/", "*/*/") for path in folder.glob(level + CSV_FILE) if path.is_file()]
    return sorted(found, key=lambda path: (path.parent.parent, _attempt(path), path))


def check_csv_files(files: list[Path]) -> None:
    """Check that the files are the attempts of one logger, whose order is known.

    Raises:
        DamagedLogError: They lie in several places, or the folders of several attempts have no number.
    """
    if len({path.parent.parent for path in files}) > 1 or (len(files) > 1 and _attempt(files[0]) < 0):
        places = ", ".join(f"{path.parent.parent.name}/{path.parent.name}" for path in files)
        raise DamagedLogError(f"in several places, whose order cannot be told: {places}; keep the one that counts")


def _attempt(path: Path) -> int:
    match = _VERSION.fullmatch(path.parent.name)
    return int(match[1]) if match else -1


def read_csv_log(content: bytes, attempt: int) -> ScalarLog:
    """Read the scalars of a CSV log.

    The file has no times and no mark of a restart. Attempts are ordered by their number, and a later one went on from
    the step of its first row of training: it supersedes what earlier ones logged from there on. One that was stopped
    before it wrote such a row supersedes nothing.

    Args:
        content: Of the file.
        attempt: Its place among the files of the run, from 0.

    Raises:
        DamagedLogError: It is no table of numbers with a step in each row, or the first attempt's rows are gone.
    """
    log = ScalarLog(is_torn=bool(content) and not content.endswith(b"\n"))
    whole = content[: content.rfind(b"\n") + 1]  # a number that was cut off would be another number
    try:
        rows = list(csv.reader(io.StringIO(whole.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedLogError(str(error)) from None
    if not rows:
        return log
    names = rows[0]
    if names.count(_STEP) != 1 or len(set(names)) != len(names):
        raise DamagedLogError(f"expected a heading with one column {_STEP!r} and no name twice, got {rows[0][:5]}")
    for number, row in enumerate(rows[1:], 2):
        _read_row(log, names, row, number, attempt)
    training = [step for name, step in zip(log.metrics, log.steps, strict=True) if not name.startswith(EVAL_PREFIX)]
    if training and attempt > 0:
        log.restarts.append(Restart(min(training) + 1, attempt))
    elif training and min(log.steps) > 0:
        raise DamagedLogError(f"begins at step {min(log.steps)}: the rows of an earlier attempt are gone")
    return log


def _read_row(log: ScalarLog, names: list[str], row: list[str], number: int, attempt: int) -> None:
    if len(row) != len(names):
        raise DamagedLogError(f"row {number} has {len(row)} cells, expected {len(names)}")
    cells = dict(zip(names, row, strict=True))
    try:
        step = int(cells.pop(_STEP))
        filled = [(name, float(cell)) for name, cell in cells.items() if cell]
    except ValueError as error:
        raise DamagedLogError(f"row {number}: expected numbers ({error})") from None
    for name, value in filled:
        log.metrics.append(name)
        log.steps.append(step)
        log.values.append(value)
        log.times.append(float(attempt))
