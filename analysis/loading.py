"""Run directories on disk -> two tables: what the runs logged, and how each of them ended."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import ReportError
from analysis.events import event_files
from analysis.run_log import log_files, mixed_loggers, read_scalars
from analysis.scalars import RunScalars
from analysis.tables import groups, rows_where
from grpovi_lightning.run_record.layout import (
    ARMS_FOLDER,
    PREPARE_FOLDER,
    STATUS_FILE,
    STUDY_FILE,
    RecordError,
    folder_arm,
    folder_seed,
)
from grpovi_lightning.run_record.status import UNKNOWN, RunRecord, State, require_status

RUN_COLUMNS = {
    "arm": "category",
    "seed": "Int64",
    "run": "category",
    "metric": "category",
    "step": "int64",
    "value": "float64",
    "wall_time": "float64",
}
_RECORDED = (
    *("state", "step", "max_steps", "wall_seconds", "adjustment", "adjusts", "device"),
    *("first_rollout", "held_out", "error", "warnings"),
)
STATUS_COLUMNS = ["arm", "seed", "run", *_RECORDED, "problem"]


@dataclass(frozen=True)
class RunFolder:
    """One run directory: its arm, its seed if the folder's name tells it, and its place below the study."""

    path: Path
    run: str
    arm: str
    folder_seed: int | None


def find_runs(path: str | Path) -> list[RunFolder]:
    """Find the run directories below `path`, without those of the prepare stages.

    A run directory holds `status.json` or log files of TensorBoard; `arms/<arm>/seed_<k>` counts in any case, so
    that a process which died before it wrote anything is still seen. Folders inside a run belong to that run.

    Args:
        path: A study folder, a folder of runs, or one run directory.

    Returns:
        The runs, sorted by arm, seed and place.

    Raises:
        ReportError: `path` is no folder, or there is no run in it, or it holds several studies.
    """
    root = Path(path)
    if not root.is_dir():
        raise ReportError(f"{root}: no such folder; expected a study or a folder of runs")
    studies = [] if (root / STUDY_FILE).is_file() else sorted(file.parent.name for file in root.glob(f"*/{STUDY_FILE}"))
    if studies:
        raise ReportError(f"{root} holds {len(studies)} studies ({', '.join(studies)}); give the folder of one")
    folders = []
    for name, children, _ in os.walk(root):
        folder = Path(name)
        children.sort()
        if folder == root:
            children[:] = [child for child in children if child != PREPARE_FOLDER]
        if _is_run(folder, root):
            children.clear()
            place = folder.resolve()
            run = folder.relative_to(root).as_posix()
            folders.append(RunFolder(folder, run, folder_arm(place), folder_seed(place.name)))
    if not folders:
        raise ReportError(f"{root}: no runs in it; expected folders with {STATUS_FILE}, as `grpovi fit` writes them")
    return sorted(
        folders, key=lambda found: (found.arm, -1 if found.folder_seed is None else found.folder_seed, found.run)
    )


def _is_run(folder: Path, root: Path) -> bool:
    if (folder / STATUS_FILE).is_file() or event_files(folder):
        return True
    parts = folder.relative_to(root).parts
    return len(parts) == 3 and parts[0] == ARMS_FOLDER and folder_seed(parts[2]) is not None


def load_runs(path: str | Path) -> pd.DataFrame:
    """Load every scalar that the runs below `path` logged.

    Args:
        path: A study folder (`arms/<arm>/seed_<k>`), a folder of runs in any layout, or one run. The arm is the
            parent folder's name where the run's folder is called `seed_<k>`, else the run's folder name.

    Returns:
        One row a logged value, sorted: `arm`, `seed` (Int64, missing where none was recorded), `run` (path relative
        to `path`), `metric` (the tag), `step` (policy updates), `value`, `wall_time` (seconds since the epoch; NaN in
        the logs of `CSVLogger`, which has none). `arm`, `run` and `metric` are categories of str, which take a tenth of
        the memory. Runs of the prepare stages are not arms and not in it. Runs that failed are in it with what they
        logged; a run whose log files are damaged has no rows. `load_status` lists every run. `attrs["path"]` is
        `path`, so that `efficiency_table` finds the status of the runs.

    Raises:
        ReportError: `path` is no folder, or there is no run in it.
    """
    return load_study(path)[0]


def load_status(path: str | Path) -> pd.DataFrame:
    """Load how each run below `path` ended, one row a run, none left out.

    Args:
        path: As for `load_runs`.

    Returns:
        `arm`, `seed`, `run`, `state` (from status.json, or "unknown"), `step`, `max_steps`, `wall_seconds`,
        `adjustment` (class name), `adjusts` (whether it can change a reward; None where not known), `device`,
        `first_rollout`, `held_out` (hashes), `error`, `warnings` (a tuple of str), and `problem`: why the run cannot be
        counted whatever the metric (it did not finish, a file is damaged, ...), or None.

    Raises:
        ReportError: `path` is no folder, or there is no run in it.
    """
    return load_study(path)[1]


def load_study(path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of `load_runs` and `load_status`, from one pass over the files."""
    tables: list[tuple[RunFolder, int | None, pd.DataFrame]] = []
    status_rows: list[dict[str, Any]] = []
    for folder in find_runs(path):
        scalars = read_scalars(folder.path)
        status = _status_row(folder, scalars)
        status_rows.append(status)
        tables.append((folder, status["seed"], scalars.table))
    runs = _joined(tables)
    runs.attrs["path"] = str(path)
    return runs, _mark_duplicates(status_table(status_rows))


def _joined(tables: list[tuple[RunFolder, int | None, pd.DataFrame]]) -> pd.DataFrame:
    """Put the tables of the runs below each other, each column at once: pandas' own way takes twice the memory."""
    tables = [(folder, seed, table) for folder, seed, table in tables if len(table)]
    lengths = [len(table) for *_, table in tables]

    def repeated(names: list[str]) -> pd.Categorical:
        codes, categories = pd.factorize(np.array(names, dtype=object), sort=True)
        return pd.Categorical.from_codes(np.repeat(codes, lengths), categories=pd.Index(categories, dtype="str"))

    def column(name: str, dtype: str) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(table[name].to_numpy() for *_, table in tables)])

    names = sorted({name for *_, table in tables for name in table["metric"].cat.categories})
    place = pd.Index(names, dtype="str")
    metrics = [place.get_indexer(table["metric"].cat.categories)[table["metric"].cat.codes] for *_, table in tables]
    seeds = pd.array([seed for _, seed, _ in tables], dtype="Int64")
    columns = {
        "arm": repeated([folder.arm for folder, *_ in tables]),
        "seed": seeds.repeat(lengths),
        "run": repeated([folder.run for folder, *_ in tables]),
        "metric": pd.Categorical.from_codes(np.concatenate([np.empty(0, "int32"), *metrics]), categories=place),
        "step": column("step", "int64"),
        "value": column("value", "float64"),
        "wall_time": column("wall_time", "float64"),
    }
    return pd.DataFrame(columns, copy=False)


def status_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Make a table as of `load_status` from one mapping a run; what a mapping lacks is missing in the table."""
    objects = ("state", "adjustment", "adjusts", "device", "first_rollout", "held_out", "error", "problem")
    table = pd.DataFrame({column: pd.Series([row[column] for row in rows], dtype="str") for column in ("arm", "run")})
    for column in ("seed", "step", "max_steps"):
        table[column] = pd.Series([row.get(column) for row in rows], dtype="Int64")
    table["wall_seconds"] = pd.Series([row.get("wall_seconds") for row in rows], dtype="float64")
    for column in objects:  # not str, so that what is missing is None and not NaN, which is true
        table[column] = pd.Series([row.get(column) for row in rows], dtype="object")
    table["warnings"] = pd.Series([row.get("warnings", ()) for row in rows], dtype="object")
    return table.reindex(columns=STATUS_COLUMNS)


def _status_row(folder: RunFolder, scalars: RunScalars) -> dict[str, Any]:
    unreadable = None
    try:
        record = require_status(folder.path)
    except RecordError as error:
        record, unreadable = RunRecord(), str(error)
    row: dict[str, Any] = {column: getattr(record, column) for column in _RECORDED}
    row |= {"arm": folder.arm, "run": folder.run}
    row["seed"] = folder.folder_seed if record.seed is None else record.seed
    row["problem"] = unreadable or _problem(row, folder, scalars, record.loggers)
    return row


def _problem(row: dict[str, Any], folder: RunFolder, scalars: RunScalars, loggers: tuple[str, ...]) -> str | None:
    step, max_steps = ("?" if row[name] is None else row[name] for name in ("step", "max_steps"))
    progress = f"at step {step} of {max_steps}"
    if row["state"] == State.FAILED:
        return f"failed {progress}: {row['error'] or 'no error was recorded'}"
    if row["state"] == State.RUNNING:
        return f"not finished: running, {progress}"
    if row["state"] == State.INTERRUPTED:
        return f"interrupted {progress}" + (f": {row['error']}" if row["error"] else "")
    if row["state"] == UNKNOWN:
        return f"{STATUS_FILE} names no state out of {', '.join(State)}"
    if not log_files(folder.path):
        return "this run has no TensorBoard or CSV log" + (f"; it logged with {', '.join(loggers)}" if loggers else "")
    if mixed_loggers(folder.path, loggers):
        return "its last attempt logged as CSV and an earlier one for TensorBoard, so neither has all values"
    if scalars.damage is not None:
        return f"damaged log file {scalars.damage}"
    if scalars.torn_tail is not None:
        return f"log file {scalars.torn_tail} ends inside a record, so its last values are missing"
    if row["seed"] is None:
        return "no seed was recorded, so it cannot be paired with a run of another arm"
    if folder.folder_seed is not None and folder.folder_seed != row["seed"]:
        return f"the folder says seed {folder.folder_seed}, {STATUS_FILE} says seed {row['seed']}"
    return None


def _mark_duplicates(status: pd.DataFrame) -> pd.DataFrame:
    """Exclude all of several usable runs of one arm and seed: the choice of one would go unseen."""
    usable = rows_where(status, status["problem"].isna())
    for (_, seed), group in groups(usable, "arm", "seed"):
        if len(group) > 1:
            places = ", ".join(group["run"])
            status.loc[group.index, "problem"] = f"several runs of this arm with seed {seed}: {places}; keep one"
    return status
