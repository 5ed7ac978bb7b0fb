"""Running the processes of a study: a few at a time, each to its end, none left behind."""

import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.layout import STATUS_FILE
from grpovi_lightning.run_record.status import RunRecord, State, read_status, settle_status
from grpovi_lightning.study.interruption import Interruption
from grpovi_lightning.study.launchers import Process
from grpovi_lightning.study.launchers.interface import Start
from grpovi_lightning.study.launchers.orders import revoke
from grpovi_lightning.study.process import Orphan, Run, last_lines, stop, usable_checkpoint
from grpovi_lightning.study.progress import QUEUED, WAITING, Display, RunProgress
from grpovi_lightning.study.record import changed_config

POLL_SECONDS = 0.05
STATUS_SECONDS = 0.5
"""How often the status of a running process is read."""


@dataclass(frozen=True)
class Settings:
    """How processes are run; none of it changes what they compute."""

    start: Start
    jobs: int
    patience: float
    """Seconds that a process has to save and leave once it is asked to stop."""


@dataclass
class _Active:
    progress: RunProgress
    process: Process
    stale: int | None
    """Version of the status file that an earlier attempt left; the process has not written while it still stands."""
    looked: float = field(default_factory=time.monotonic)

    def fresh_status(self) -> RunRecord | None:
        run = self.progress.run
        return None if _status_version(run) == self.stale else read_status(run.folder)


class Runner:
    """Runs processes. Whatever happens, it returns or raises only when its processes are gone."""

    def __init__(self, settings: Settings, display: Display, interruption: Interruption) -> None:
        self._settings, self._display, self._interruption = settings, display, interruption

    def adopt(self, runs: Sequence[RunProgress]) -> None:
        """Find out where each run stands: stop processes that outlived their `compare`, note finished runs.

        A stage whose model is gone, and needed by a run that is not finished, goes on from its last checkpoint.

        Raises:
            UserError: when such a process cannot be stopped.
        """
        for progress in runs:
            revoke(progress.run.lock)
        orphans = [orphan for orphan in (Orphan(progress.run) for progress in runs) if orphan.alive()]
        for orphan in orphans:
            self._display.note(f"{orphan.run.label}: stopping the process that an earlier compare left behind")
        stop(orphans, self._settings.patience, lambda: bool(self._interruption.received))
        for orphan in orphans:
            if orphan.alive():
                raise UserError(
                    f"{orphan.run.label}: a process still works on {orphan.run.folder} and does not end; "
                    "end it, then run the same command again"
                )
        needed = False  # what a stage made, by runs after it
        for progress in reversed(runs):
            status = read_status(progress.run.folder)
            finished = status is not None and status.state == State.FINISHED
            if needed and progress.run.lacks_model:
                finished = False
            needed |= not finished
            if status is not None and (finished or usable_checkpoint(progress.run.folder)):
                progress.follow(status)
            if finished:
                progress.state = State.FINISHED
        for progress in runs:
            if progress.state == State.FINISHED:
                self._display.changed(progress)

    def work(self, runs: Sequence[RunProgress], jobs: int) -> None:
        """Run what waits, at most `jobs` at a time, until all are over or a signal asks to stop.

        Args:
            runs: changed in place; those that are over are left alone.
            jobs: how many processes may live at a time.
        """
        queue = deque(progress for progress in runs if progress.state == WAITING)
        active: list[_Active] = []
        try:
            while (queue or active) and not self._interruption.received:
                while queue and len(active) < jobs:
                    self._start(queue.popleft(), active)
                active = [entry for entry in active if not self._look(entry)]
                self._display.refresh()
                if active:
                    time.sleep(POLL_SECONDS)
        finally:
            self._stop(active)

    def _start(self, progress: RunProgress, active: list[_Active]) -> None:
        run = progress.run
        edits = [edit for edit in map(changed_config, run.configs) if edit]
        if edits:
            progress.state = State.FAILED
            progress.error = f"{edits[0]} since this compare began; restore it and run the same command again"
            self._display.changed(progress)
            return
        before = _status_version(run)
        process = self._settings.start(run)
        progress.state, progress.began_at_step = QUEUED, progress.step
        active.append(_Active(progress, process, before))
        if not self._has_begun(active[-1]):
            self._display.changed(progress)

    def _has_begun(self, entry: _Active) -> bool:
        """Tell whether a run has a machine, and show it when that is new."""
        progress = entry.progress
        if progress.state == QUEUED and entry.process.begun():
            progress.state, progress.began = State.RUNNING, time.monotonic()
            self._display.changed(progress)
        return progress.state != QUEUED

    def _look(self, entry: _Active) -> bool:
        """Bring a run's progress up to date; True when it is over."""
        if not entry.process.alive():
            self._tell_news(entry)
            self._settle(entry, stopping=False)
            return True
        if time.monotonic() - entry.looked >= STATUS_SECONDS:
            entry.looked = time.monotonic()
            if not self._has_begun(entry):
                return False
            self._tell_news(entry)
            status = entry.fresh_status()
            if status is not None:
                entry.progress.follow(status)
        return False

    def _tell_news(self, entry: _Active) -> None:
        for line in entry.process.news():
            self._display.note(f"{entry.progress.run.label}: {line}")

    def _stop(self, active: list[_Active]) -> None:
        alive = [entry for entry in active if entry.process.alive()]
        if alive:
            self._display.note(f"stopping {len(alive)} running; once more Ctrl-C hurries them")
            seen = len(self._interruption.received)

            def hurry() -> bool:
                # Every further signal passes on to the next stronger means, and no more than one.
                nonlocal seen
                before, seen = seen, len(self._interruption.received)
                return seen > before

            stop([entry.process for entry in alive], self._settings.patience, hurry)
        for entry in active:
            self._settle(entry, stopping=True)

    def _settle(self, entry: _Active, *, stopping: bool) -> None:
        progress, run = entry.progress, entry.progress.run
        if not self._has_begun(entry) and stopping:
            progress.state = WAITING
            return
        status = entry.fresh_status()
        exit_status = entry.process.exit_status
        progress.ended = time.monotonic()
        if status is not None:
            progress.follow(status)
        if (status is not None and status.state == State.FINISHED) or (run.command != "fit" and exit_status == 0):
            progress.state = State.FINISHED
        elif stopping or (status is not None and status.state == State.INTERRUPTED):
            progress.state, progress.error = State.INTERRUPTED, status.error if status else None
            if not stopping:
                progress.error = progress.error or entry.process.problem
        else:
            progress.state, progress.error = State.FAILED, _reason(entry.process, status)
        if status is None or status.state != progress.state:
            settle_status(run.folder, progress.state, error=progress.error, seed=run.seed)
        self._display.changed(progress)


def _status_version(run: Run) -> int | None:
    """Return a number that changes with every write of the run's status.json; None where there is none."""
    path = run.folder / STATUS_FILE
    return path.stat().st_mtime_ns if path.is_file() else None


def _reason(process: Process, status: RunRecord | None) -> str:
    """Say in one line why a process ended without finishing its run."""
    if status is not None and status.state == State.FAILED and status.error:
        return status.error
    if process.problem is not None:
        return process.problem
    exit_status = process.exit_status
    said = last_lines(process.run.log, 3, process.log_start)
    tail = " | ".join(line.removeprefix("grpovi: error: ") for line in said)[-400:]
    if exit_status < 0:
        how = f"killed by {signal.Signals(-exit_status).name}"
        hint = "; the system does that when memory runs out" if exit_status == -signal.SIGKILL else ""
        return how + hint + (f"; its last output: {tail}" if tail else "")
    if exit_status == 0:
        return "the process ended without finishing its run" + (f"; its last output: {tail}" if tail else "")
    return tail or f"the process ended with status {exit_status} and said nothing"
