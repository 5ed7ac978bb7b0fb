"""`status.json` of a run directory: the run writes it while it lives, the runner settles it afterwards."""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STATUS = "status.json"
LOG = "process.log"

_EMPTY: dict[str, Any] = {
    "state": "running",
    "seed": None,
    "step": 0,
    "max_steps": None,
    "error": None,
    "warnings": [],
    "first_rollout": None,
    "pid": None,
    "started": None,
    "updated": None,
    "wall_seconds": 0.0,
    "stage": None,
    "adjustment": None,
    "device": None,
}


@dataclass(frozen=True)
class RunStatus:
    """What the runner reads of a run's `status.json`."""

    state: str
    """`running`, `finished`, `failed` or `interrupted`, as last written: a killed run still says `running`."""
    step: int
    max_steps: int
    error: str | None
    first_rollout: str | None
    """Hash of the completions of step 0, or None before them and for runs that sample none."""
    version: int
    """Changes with every write, so that a status left by an earlier attempt can be told from a new one."""


def read_status(run_dir: Path) -> RunStatus | None:
    """Read a run's status, or None when there is none that can be read."""
    path = run_dir / STATUS
    content = _read(path)
    if not content:
        return None
    return RunStatus(
        state=str(content.get("state")),
        step=int(content.get("step") or 0),
        max_steps=int(content.get("max_steps") or 0),
        error=content.get("error"),
        first_rollout=content.get("first_rollout"),
        version=path.stat().st_mtime_ns,
    )


def settle_status(run_dir: Path, state: str, *, error: str | None, seed: int | None) -> None:
    """Write the end of a run that could not write it itself, keeping whatever the run had written before."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = _EMPTY | {"seed": seed, "started": now} | _read(run_dir / STATUS)
    content |= {"state": state, "error": error, "updated": now}
    partial = run_dir / f"{STATUS}.{os.getpid()}.tmp"
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(run_dir / STATUS)


def last_lines(log: Path, count: int, start: int = 0) -> list[str]:
    """The last non-empty lines of a process's output, without reading all of it.

    Args:
        log: the file; a missing one has no lines.
        count: how many lines at most.
        start: byte at which the output of interest begins.
    """
    if not log.is_file():
        return []
    with log.open("rb") as handle:
        handle.seek(max(start, log.stat().st_size - 65536))
        text = handle.read().decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Absent, or cut short by a full disk: the run has no status then, and starts or continues like a killed one.
        return {}
    return content if isinstance(content, dict) else {}
