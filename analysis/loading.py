"""Run directories on disk -> two tables: what the runs logged, and how each of them ended."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import ReportError
from analysis.events import RunScalars, Scalar, event_files, read_scalars
from analysis.tables import groups, rows_where

STATUS_FILE = "status.json"
PREPARE_FOLDER = "prepare"
ARMS_FOLDER = "arms"
RUN_COLUMNS = {
    "arm": "str",
    "seed": "Int64",
    "run": "str",
    "metric": "str",
    "step": "int64",
    "value": "float64",
    "wall_time": "float64",
}
STATUS_COLUMNS = [
    *("arm", "seed", "run", "state", "step", "max_steps", "wall_seconds", "adjustment", "device"),
    *("first_rollout", "error", "warnings", "problem"),
]
_SEED_FOLDER = re.compile(r"seed_(\d+)")
_STATES = ("running", "finished", "failed", "interrupted")


@dataclass(frozen=True)
class RunFolder:
    """One run directory: its arm, its seed if the folder's name tells it, and its place below the study."""

    path: Path
    run: str
    arm: str
    folder_seed: int | None


def find_runs(path: str | Path) -> list[RunFolder]:
    """Finds the run directories below `path`, without those of the prepare stages.

    A run directory holds `status.json` or TensorBoard event files; `arms/<arm>/seed_<k>` counts in any case, so
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
    studies = [] if (root / "study.yaml").is_file() else sorted(file.parent.name for file in root.glob("*/study.yaml"))
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
            folders.append(_run_folder(folder, root))
    if not folders:
        raise ReportError(f"{root}: no runs in it; expected folders with {STATUS_FILE}, as `grpovi fit` writes them")
    return sorted(
        folders, key=lambda found: (found.arm, -1 if found.folder_seed is None else found.folder_seed, found.run)
    )


def _is_run(folder: Path, root: Path) -> bool:
    if (folder / STATUS_FILE).is_file() or event_files(folder):
        return True
    parts = folder.relative_to(root).parts
    return len(parts) == 3 and parts[0] == ARMS_FOLDER and _SEED_FOLDER.fullmatch(parts[2]) is not None


def _run_folder(folder: Path, root: Path) -> RunFolder:
    place = folder.resolve()
    seed = _SEED_FOLDER.fullmatch(place.name)
    return RunFolder(
        path=folder,
        run=folder.relative_to(root).as_posix(),
        arm=place.parent.name if seed else place.name,
        folder_seed=int(seed.group(1)) if seed else None,
    )


def load_runs(path: str | Path) -> pd.DataFrame:
    """Loads every scalar that the runs below `path` logged.

    Args:
        path: A study folder (`arms/<arm>/seed_<k>`), a folder of runs in any layout, or one run. The arm is the
            parent folder's name where the run's folder is called `seed_<k>`, else the run's folder name.

    Returns:
        One row a logged value, sorted: `arm` (str), `seed` (Int64, missing where none was recorded), `run`
        (path relative to `path`), `metric` (the tag), `step` (policy updates), `value`, `wall_time` (seconds since
        the epoch). Runs of the prepare stages are not arms and not in it. Runs that failed are in it with what
        they logged; a run whose event files are damaged has no rows. `load_status` lists every run.
        `attrs["path"]` is `path`, so that `efficiency_table` finds the status of the runs.

    Raises:
        ReportError: `path` is no folder, or there is no run in it.
    """
    return load_study(path)[0]


def load_status(path: str | Path) -> pd.DataFrame:
    """Loads how each run below `path` ended, one row a run, none left out.

    Args:
        path: As for `load_runs`.

    Returns:
        `arm`, `seed`, `run`, `state` (from status.json, or "unknown"), `step`, `max_steps`, `wall_seconds`,
        `adjustment`, `device`, `first_rollout`, `error`, `warnings` (a tuple of str), and `problem`: why the run
        cannot be counted whatever the metric (it did not finish, a file is damaged, ...), or None.

    Raises:
        ReportError: `path` is no folder, or there is no run in it.
    """
    return load_study(path)[1]


def load_study(path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Loads both tables in one pass over the files; see `load_runs` and `load_status`."""
    frames = [pd.DataFrame(columns=list(RUN_COLUMNS)).astype(RUN_COLUMNS)]
    status_rows: list[dict[str, Any]] = []
    for folder in find_runs(path):
        scalars = read_scalars(folder.path)
        status = _status_row(folder, scalars)
        status_rows.append(status)
        if scalars.scalars:
            frame = pd.DataFrame(scalars.scalars, columns=list(Scalar._fields))
            frame = frame.assign(arm=folder.arm, seed=status["seed"], run=folder.run)
            frames.append(frame.reindex(columns=list(RUN_COLUMNS)).astype(RUN_COLUMNS))
    runs = pd.concat(frames[1:] or frames, ignore_index=True)
    runs.attrs["path"] = str(path)
    return runs, _mark_duplicates(status_table(status_rows))


def status_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A status table (see `load_status`) from one mapping a run; what a mapping lacks is missing in the table."""
    texts = ("state", "adjustment", "device", "first_rollout", "error", "problem")
    table = pd.DataFrame({column: pd.Series([row[column] for row in rows], dtype="str") for column in ("arm", "run")})
    for column in ("seed", "step", "max_steps"):
        table[column] = pd.Series([row.get(column) for row in rows], dtype="Int64")
    table["wall_seconds"] = pd.Series([row.get("wall_seconds") for row in rows], dtype="float64")
    for column in texts:  # object, so that what is missing is None and not NaN, which is true
        table[column] = pd.Series([row.get(column) for row in rows], dtype="object")
    table["warnings"] = pd.Series([row.get("warnings", ()) for row in rows], dtype="object")
    return table.reindex(columns=STATUS_COLUMNS)


def _status_row(folder: RunFolder, scalars: RunScalars) -> dict[str, Any]:
    content, unreadable = read_status(folder.path / STATUS_FILE)
    seed = _integer(content.get("seed"))
    row = {
        "arm": folder.arm,
        "seed": folder.folder_seed if seed is None else seed,
        "run": folder.run,
        "state": content["state"] if content.get("state") in _STATES else "unknown",
        "step": _integer(content.get("step")),
        "max_steps": _integer(content.get("max_steps")),
        "wall_seconds": _number(content.get("wall_seconds")),
        "adjustment": _text(content.get("adjustment")),
        "device": _text(content.get("device")),
        "first_rollout": _text(content.get("first_rollout")),
        "error": _text(content.get("error")),
        "warnings": _lines(content.get("warnings")),
    }
    row["problem"] = unreadable or _problem(row, folder, scalars)
    return row


def read_status(path: Path) -> tuple[dict[str, Any], str | None]:
    """The content of status.json, or {} and what is wrong with the file."""
    if not path.is_file():
        return {}, f"no {STATUS_FILE}: the run never started, or was not started by `grpovi`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        return {}, f"{STATUS_FILE} cannot be read: {error}"
    if not isinstance(content, dict):
        return {}, f"{STATUS_FILE} cannot be read: expected an object, got {type(content).__name__}"
    return content, None


def _problem(row: dict[str, Any], folder: RunFolder, scalars: RunScalars) -> str | None:
    progress = f"at step {_or_unknown(row['step'])} of {_or_unknown(row['max_steps'])}"
    if row["state"] == "failed":
        return f"failed {progress}: {row['error'] or 'no error was recorded'}"
    if row["state"] == "running":
        return f"not finished: running, {progress}"
    if row["state"] == "interrupted":
        return f"interrupted {progress}"
    if row["state"] == "unknown":
        return f"{STATUS_FILE} names no state out of {', '.join(_STATES)}"
    if scalars.damage is not None:
        return f"damaged event file {scalars.damage}"
    if scalars.torn_tail is not None:
        return f"event file {scalars.torn_tail} ends inside a record, so its last values are missing"
    if row["seed"] is None:
        return "no seed was recorded, so it cannot be paired with a run of another arm"
    if folder.folder_seed is not None and folder.folder_seed != row["seed"]:
        return f"the folder says seed {folder.folder_seed}, {STATUS_FILE} says seed {row['seed']}"
    return None


def _mark_duplicates(status: pd.DataFrame) -> pd.DataFrame:
    """Two usable runs of one arm and seed cannot both be paired, and choosing one would be silent."""
    usable = rows_where(status, status["problem"].isna())
    for (_, seed), group in groups(usable, "arm", "seed"):
        if len(group) > 1:
            places = ", ".join(group["run"])
            status.loc[group.index, "problem"] = f"several runs of this arm with seed {seed}: {places}; keep one"
    return status


def _or_unknown(value: int | None) -> str:
    return "?" if value is None else str(value)


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _lines(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(line) for line in value) if isinstance(value, list) else (str(value),)
