"""One run as an operating-system process: how it starts, how it is stopped, and what it leaves behind."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.checkpoints import LAST_CHECKPOINT, flaw, last_checkpoint
from grpovi_lightning.run_record.layout import (
    CHECKPOINTS_FOLDER,
    LOG_FILE,
    MODEL_FOLDER,
)
from grpovi_lightning.run_record.lock import acquire
from grpovi_lightning.run_record.sweeps import Point
from grpovi_lightning.study.requests import launch_folder, request
from grpovi_lightning.study.specification import ConfigFile

TERMINATE_SECONDS = 5.0
"""How long a process has between SIGTERM and SIGKILL."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)

_PYTHON = {
    "PYTHONUNBUFFERED": "1",
    # `python -m`, in the process and in the ranks that it starts, would look for every module in the working folder.
    "PYTHONSAFEPATH": "1",
}


@dataclass(frozen=True)
class Run:
    """One process of a study: a prepare stage, or one arm under one seed."""

    owner: str
    """The name of its stage or arm."""
    folder: Path
    arguments: tuple[str, ...]
    """What follows the launcher, without `--ckpt_path`."""
    configs: tuple[ConfigFile, ...]
    lock: Path
    """Held by the process as long as it or one of its workers lives."""
    command: str = "fit"
    seed: int | None = None
    """None for a prepare stage."""
    threads: int = 1
    """CPU threads that its numerical libraries may use."""
    point: Point | None = None
    """The point of a grid that it runs, for an arm with `values`."""
    task: str | None = None
    """The task of its arm, in a study of several."""

    @property
    def label(self) -> str:
        """Name of the run in messages."""
        return f"prepare {self.owner}" if self.seed is None else f"arm {self.owner} seed {self.seed}"

    @property
    def lacks_model(self) -> bool:
        """Whether it is a stage that ends with a model, and there is none."""
        return self.seed is None and self.command == "fit" and not (self.folder / MODEL_FOLDER).is_dir()

    @property
    def goes_on_by_itself(self) -> bool:
        """Whether the process takes up what an earlier attempt left in the folder, without a checkpoint."""
        return self.command in ("sample", "relabel")

    @property
    def log(self) -> Path:
        """File of all that the process prints. Beside the folder of what does not train, which has it to itself."""
        if self.command == "fit":
            return self.folder / LOG_FILE
        return self.folder.with_name(f"{self.folder.name}.{LOG_FILE}")


class RunProcess:
    """A started run on this machine: the process, its group, and the lock that it holds."""

    problem: str | None = None
    """Nothing but its own doing ends it."""

    def __init__(
        self, run: Run, popen: subprocess.Popen[bytes], log_start: int, passed_over: str | None = None
    ) -> None:
        """Take charge of a process that leads its own group; its output begins at byte `log_start` of the log.

        `passed_over` says which checkpoint could not be used, if one could not.
        """
        self.run, self.log_start = run, log_start
        self._news = [passed_over] if passed_over else []
        self._popen = popen

    def begun(self) -> bool:
        """Tell whether it was started: always."""
        return True

    def news(self) -> list[str]:
        """Return what was found at its start and not told yet."""
        found, self._news = self._news, []
        return found

    def alive(self) -> bool:
        """Tell whether the process still runs; once it has ended, kill workers that it left."""
        if self._popen.poll() is None:
            return True
        _signal_group(self._popen.pid, signal.SIGKILL)
        return False

    def signal(self, signum: int) -> None:
        """Send a signal to the process and its workers; nothing happens when it is gone."""
        if self._popen.poll() is None:
            _signal_group(self._popen.pid, signum)

    @property
    def exit_status(self) -> int:
        """The status of the ended process; negative: the signal that killed it."""
        return self._popen.wait()


class Orphan:
    """A run that outlived the `compare` which started it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def alive(self) -> bool:
        """Tell whether some process still holds the run's lock."""
        if not self.run.lock.is_file():
            return False
        with self.run.lock.open("a") as handle:
            return not acquire(handle.fileno())

    def signal(self, signum: int) -> None:
        """Send a signal to the group whose leader is named in the lock, or have its machine send it."""
        process, _, host = self.run.lock.read_text(encoding="utf-8").strip().partition(" ")
        if not process or not self.alive():
            return
        if host in ("", socket.gethostname()):
            _signal_group(int(process), signum)
        elif launch_folder(self.run.lock).is_dir():
            request(self.run.lock, signum)


def launch(run: Run, launcher: Sequence[str]) -> RunProcess:
    """Start a run, from its last checkpoint if it has one, else from an empty folder unless it goes on by itself.

    Raises:
        UserError: when another process still works on the run.
    """
    run.lock.parent.mkdir(parents=True, exist_ok=True)
    arguments = list(run.arguments)
    checkpoint, problem = usable_checkpoint(run.folder), passed_over(run.folder)
    with run.lock.open("a") as lock:
        if not acquire(lock.fileno()):
            raise UserError(f"a process still works on {run.folder}; end it, then run the same command again")
        if checkpoint is not None:
            arguments += ["--ckpt_path", str(checkpoint)]
        elif not run.goes_on_by_itself:
            _make_empty(run.folder)
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab") as log:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            log.write(f"[{now}] grpovi {shlex.join(arguments)}\n".encode())
            log.write(f"{problem}\n".encode() if problem else b"")
            log.flush()
            log_start = log.tell()
            popen = subprocess.Popen(
                [*launcher, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own session: Ctrl-C in the terminal reaches the runner alone, which then asks each run to stop.
                start_new_session=True,
                # The child keeps the locked file open, so the lock lives as long as the child or its workers.
                pass_fds=(lock.fileno(),),
                env=os.environ | dict.fromkeys(_THREAD_VARIABLES, str(run.threads)) | _PYTHON,
            )
        lock.truncate(0)
        lock.write(f"{popen.pid} {socket.gethostname()}")
    return RunProcess(run, popen, log_start, problem)


def usable_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint that a run can continue from, or None.

    One that was cut short does not count: continuing from it would fail each time. The one before it, if the folder has
    one, leads to the same end.
    """
    return last_checkpoint(run_dir / CHECKPOINTS_FOLDER)


def passed_over(run_dir: Path) -> str | None:
    """Say that the last checkpoint of a run cannot be used, and what is done; None where all is well."""
    last, usable = run_dir / CHECKPOINTS_FOLDER / LAST_CHECKPOINT, usable_checkpoint(run_dir)
    if usable == last or not os.path.lexists(last):
        return None
    instead = f"continues from {usable.name}" if usable else "begins anew, because no other is whole"
    lacks = f"is {flaw(last)}" if last.is_dir() else "was cut short"
    return f"{last} {lacks}; the run {instead}"


def last_lines(log: Path, count: int, start: int = 0) -> list[str]:
    """Return the last non-empty lines of a process's output, without reading all of it.

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


class Stoppable(Protocol):
    """What can be sent a signal, here or on another machine."""

    def alive(self) -> bool:
        """Tell whether it still runs."""
        ...

    def signal(self, signum: int) -> None:
        """Send it a signal; nothing happens when it is gone."""
        ...


def stop(processes: Sequence[Stoppable], patience: float, hurry: Callable[[], bool] = lambda: False) -> None:
    """End processes: SIGINT, after `patience` seconds SIGTERM, after five more SIGKILL.

    Args:
        processes: what to end; those already gone are left alone.
        patience: seconds to save and leave after SIGINT.
        hurry: asked again and again; True passes on to the next stronger signal at once.
    """
    for signum, seconds in ((signal.SIGINT, patience), (signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, 5.0)):
        alive = [process for process in processes if process.alive()]
        for process in alive:
            process.signal(signum)
        deadline = time.monotonic() + seconds
        while alive and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
            alive = [process for process in alive if process.alive()]


def _signal_group(group: int, signum: int) -> None:
    # Gone already; macOS answers EPERM for a group in which only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)


def _make_empty(folder: Path) -> None:
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
