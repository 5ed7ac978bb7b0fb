"""A run on another machine, as the runner of a study sees it; what Ray and SLURM have in common."""

import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from grpovi_lightning.study.launchers.errand import Errand
from grpovi_lightning.study.launchers.interface import Site
from grpovi_lightning.study.launchers.orders import Order, Outcome, installed_versions, starts, write_order
from grpovi_lightning.study.process import Orphan, Run
from grpovi_lightning.study.requests import request

LOOK_SECONDS = 0.5
"""How often it is asked whether a job goes on."""


@dataclass(frozen=True)
class Lost:
    """A job that is gone without an outcome."""

    reason: str


class Job(Protocol):
    """An errand in the hands of Ray or SLURM."""

    def ended(self) -> Outcome | Lost | None:
        """Return how it ended; None while it waits or works."""
        ...

    def cancel(self) -> None:
        """Take it out of its queue, or end it at once."""
        ...


Submit = Callable[[Run, Errand], Job]


class RemoteProcess:
    """A run that waits for a machine, or has one. One that loses its machine is given another a few times."""

    def __init__(self, run: Run, site: Site, submit: Submit, retries: int) -> None:
        """Order the run.

        Args:
            run: what to run.
            site: where and how.
            submit: hands an errand over to Ray or SLURM, and returns at once.
            retries: how often it is ordered again after its machine was lost.
        """
        self.run = run
        self.log_start = 0
        self.problem: str | None = None
        self._submit, self._retries = submit, retries
        self._order = Order(
            identity=uuid.uuid4().hex,
            run=replace(run, configs=(), point=None),
            arguments=site.program[1:],
            patience=site.patience,
            working_folder=os.getcwd(),
            versions=installed_versions(),
        )
        self._job = self._send()
        self._looked = 0.0
        self._starts_seen = 0
        self._stopping = False
        self._outcome: Outcome | None = None
        self._news: list[str] = []

    def begun(self) -> bool:
        """Tell whether a machine has begun to work on it."""
        return self._order.retry > 0 or bool(starts(self.run.lock))

    def alive(self) -> bool:
        """Tell whether it waits or runs. One whose machine was lost is ordered again here."""
        if self._outcome is not None:
            return False
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return True
        self._looked = time.monotonic()
        ended = self._job.ended()
        if isinstance(ended, Outcome):
            self._settle(ended)
        # The lock outlives the job where the run is still saving, or where a server of network files waits for a
        # machine that is gone.
        elif isinstance(ended, Lost) and not Orphan(self.run).alive():
            self._lose(ended)
        return self._outcome is None

    def signal(self, signum: int) -> None:
        """Have its machine send it a signal; what still waits leaves its queue."""
        self._stopping = True
        self._looked = 0.0
        request(self.run.lock, signum)
        if not self.begun() or signum == signal.SIGKILL:
            self._job.cancel()

    def news(self) -> list[str]:
        """Return lines about machines that were lost, and jobs that were queued again."""
        hosts = starts(self.run.lock)
        if len(hosts) > max(1, self._starts_seen):
            self._news.append(f"was taken off its machine; goes on on {hosts[-1]}")
        self._starts_seen = len(hosts)
        found, self._news = self._news, []
        return found

    @property
    def exit_status(self) -> int:
        """The status of the ended process; negative: the signal that killed it, or was to kill it."""
        return -signal.SIGKILL if self._outcome is None else self._outcome.exit_status

    def _send(self) -> Job:
        return self._submit(self.run, Errand(str(write_order(self._order)), self._order.identity))

    def _settle(self, outcome: Outcome) -> None:
        self._outcome, self.log_start, self.problem = outcome, outcome.log_start, outcome.problem

    def _lose(self, lost: Lost) -> None:
        hosts = starts(self.run.lock)
        where = f" on {hosts[-1]}" if hosts else ""
        if self._stopping:
            self._settle(Outcome(-signal.SIGKILL, problem=f"stopped{where}"))
            return
        retry = self._order.retry + 1
        if retry > self._retries:
            self._settle(Outcome(-signal.SIGKILL, problem=f"lost its worker{where} ({lost.reason}); no retry is left"))
            return
        self._news.append(
            f"lost its worker{where} ({lost.reason}); retry {retry} of {self._retries}, from its last checkpoint"
        )
        self._starts_seen = 0
        self._order = replace(self._order, identity=uuid.uuid4().hex, retry=retry)
        self._job = self._send()
