"""The order to work on a run, as the machine that takes it reads it from the study's folder."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from grpovi_lightning.run_record.layout import replace_file
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.requests import clear_requests, launch_folder

_PACKAGES = ("grpovi-lightning", "torch", "lightning", "transformers")
"""What decides, with the settings and the seed, what a run computes."""

_ORDER, _STARTS = "order.json", "starts"


@dataclass(frozen=True)
class Order:
    """A run to work on, once."""

    identity: str
    """An order with another one in the same place is not valid any more."""
    run: Run
    """Without its configs and its point, which its machine has no use for."""
    arguments: tuple[str, ...]
    """What follows the machine's own Python, in front of the run's arguments."""
    patience: float
    working_folder: str
    """Folder of `compare`, from which relative paths count."""
    versions: dict[str, str]
    retry: int = 0
    """How often the run was ordered before by the same `compare`."""


@dataclass(frozen=True)
class Outcome:
    """How work on an order ended."""

    exit_status: int
    log_start: int = 0
    problem: str | None = None
    """What kept the run from being started, or ended it from outside; one line."""


class WorkerLostError(RuntimeError):
    """Whoever worked on an order is gone without an outcome; the run itself may be whole."""


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a run computes."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_order(order: Order) -> Path:
    """Write an order in place of any before it, with no request and no start yet; return its absolute path."""
    folder = launch_folder(order.run.lock)
    folder.mkdir(parents=True, exist_ok=True)
    clear_requests(order.run.lock)
    (folder / _STARTS).write_bytes(b"")
    run = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(order.run).items()
        if key not in ("configs", "point")
    }
    # Not `asdict(order)`: it would copy the contents of all configs.
    content = {key: value for key, value in vars(order).items() if key != "run"} | {"run": run}
    replace_file(folder / _ORDER, json.dumps(content, indent=1))
    return (folder / _ORDER).absolute()


def read_order(file: Path) -> Order | None:
    """Read the order that is valid now; None where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    run = content["run"]
    run |= {"folder": Path(run["folder"]), "lock": Path(run["lock"]), "arguments": tuple(run["arguments"])}
    return Order(**content | {"run": Run(**run, configs=()), "arguments": tuple(content["arguments"])})


def revoke(lock: Path) -> None:
    """Make an order that may still wait in some queue invalid."""
    (launch_folder(lock) / _ORDER).unlink(missing_ok=True)


def note_start(lock: Path, host: str) -> int:
    """Write down that a machine begins to work on the order; return how many have begun by now."""
    file = launch_folder(lock) / _STARTS
    with file.open("a", encoding="utf-8") as handle:
        handle.write(f"{host}\n")
    return len(starts(lock))


def starts(lock: Path) -> list[str]:
    """Return the machines that began to work on the order, in order."""
    file = launch_folder(lock) / _STARTS
    return file.read_text(encoding="utf-8").split() if file.is_file() else []


def outcome_mapping(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain values, which any launcher can carry."""
    return asdict(outcome)
