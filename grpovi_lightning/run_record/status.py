"""status.json of a run: written by the run while it lives, settled by whoever started it, read by everybody."""

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from grpovi_lightning.run_record.layout import SCHEMA, STATUS_FILE, RecordError, check_schema, replace_file


class State(StrEnum):
    """How a run stands, as it said last: a killed run still says that it is running."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


UNKNOWN = "unknown"
"""Stands for a state that is none of `State`; never written."""

_PLAIN_IN_LAYOUT_1 = re.compile(r"(^|\.)IdentityAdjustment$")


class UnreadableError(RecordError):
    """A status.json that is not there, was cut off, or holds something else."""


def timestamp() -> str:
    """Return the present time, UTC, in ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunRecord:
    """The content of status.json: what a run says of itself. None stands for what it did not say."""

    state: str = UNKNOWN
    """One of `State`, else `UNKNOWN`."""
    seed: int | None = None
    step: int | None = None
    max_steps: int | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()
    first_rollout: str | None = None
    """Hash of the completions of step 0; None before them and for runs that sample none."""
    held_out: str | None = None
    """Hash of the held-out rows; None before the training begins and where there are none."""
    started: str | None = None
    updated: str | None = None
    wall_seconds: float | None = None
    """Over all attempts of a run that was resumed, without what a later attempt superseded."""
    stage: str | None = None
    """Class of the Lightning module."""
    adjustment: str | None = None
    """Class of the adjustment, for display; None for runs that have none, such as fine-tuning."""
    adjusts: bool | None = None
    """Whether the run trains on other rewards than the raw ones: False is plain GRPO, None not known."""
    device: str | None = None
    world_size: int | None = None
    threads: int | None = None
    loggers: tuple[str, ...] = ()
    """Classes of the loggers; none also where an older version wrote the file."""
    torch: str | None = None
    pid: int | None = None


def require_status(folder: Path) -> RunRecord:
    """Return what a run's status.json says. Values of a wrong type count as not said, unknown keys are ignored.

    Raises:
        UnreadableError: there is none, or it cannot be read.
        RecordError: it has a newer layout.
    """
    path = folder / STATUS_FILE
    if not path.is_file():
        raise UnreadableError(f"no {STATUS_FILE}: the run never started, or was not started by `grpovi`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{STATUS_FILE} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UnreadableError(f"{STATUS_FILE} cannot be read: expected an object, got {type(content).__name__}")
    schema = check_schema(content, str(path))
    record = RunRecord(**{item.name: _READ[item.type](content.get(item.name)) for item in fields(RunRecord)})
    if record.state not in tuple(State):
        record = replace(record, state=UNKNOWN)
    if schema == 1 and record.adjustment is not None:
        record = replace(record, adjusts=_PLAIN_IN_LAYOUT_1.search(record.adjustment) is None)
    return record


def read_status(folder: Path) -> RunRecord | None:
    """Return what a run's status.json says, or None where there is none that tells a state.

    A file cut short by a full disk counts as none: the run then starts or continues like a killed one.

    Raises:
        RecordError: it has a newer layout.
    """
    try:
        record = require_status(folder)
    except UnreadableError:
        return None
    return None if record.state == UNKNOWN else record


def write_status(folder: Path, record: RunRecord) -> None:
    """Write a run's status.json, whole or not at all."""
    replace_file(folder / STATUS_FILE, json.dumps({"schema": SCHEMA} | asdict(record), indent=1) + "\n")


def settle_status(folder: Path, state: str, *, error: str | None, seed: int | None) -> None:
    """Write the end of a run that could not write it itself, keeping whatever the run had written before."""
    record = read_status(folder) or RunRecord(seed=seed, started=timestamp())
    write_status(folder, replace(record, state=state, error=error, updated=timestamp()))


def _lines(value: object) -> tuple[str, ...]:
    return () if value is None else tuple(map(str, value)) if isinstance(value, list) else (str(value),)


_READ: dict[Any, Any] = {
    str: str,
    int | None: lambda value: value if type(value) is int else None,  # True is an int, too
    float | None: lambda value: float(value) if type(value) in (int, float) else None,
    bool | None: lambda value: value if isinstance(value, bool) else None,
    str | None: lambda value: None if value is None else str(value),
    tuple[str, ...]: _lines,
}
