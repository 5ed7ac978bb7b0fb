"""The process beside a run on another machine: it starts the run, passes signals on, and says how it ended.

`python -m grpovi_lightning.study.launchers.keeper ORDER IDENTITY`, on the machine that Ray or SLURM chose.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.lock import acquire
from grpovi_lightning.run_record.status import State, read_status
from grpovi_lightning.study.launchers.orders import (
    Order,
    Outcome,
    installed_versions,
    note_start,
    outcome_mapping,
    read_order,
)
from grpovi_lightning.study.process import Orphan, launch, stop
from grpovi_lightning.study.record import LOCK
from grpovi_lightning.study.requests import Requests

LOOK_SECONDS = 0.1
LOCK_SECONDS = 150.0
"""How long a lost machine may keep a run's lock: a server of network files takes it back after about 90 seconds."""

_STOPPED = Outcome(128 + signal.SIGINT, problem="stopped before it began")


def work(file: Path, identity: str, ends: Callable[[float], bool]) -> Outcome:
    """Work on an order until its run is over.

    Args:
        file: the order, in the study's folder.
        identity: the order that this machine was sent for.
        ends: waits for so many seconds, or until whoever waits for the outcome is gone; tells whether that is so.

    Returns:
        How the run ended, or what kept it from being started.
    """
    host = socket.gethostname()
    problem = _blind(file.parents[2], host)
    if problem:
        return Outcome(2, problem=problem)
    order = read_order(file)
    if order is None or order.identity != identity:
        return Outcome(2, problem="another order has taken the place of this one")
    if different := _different_versions(order, host):
        return Outcome(2, problem=different)
    try:
        os.chdir(order.working_folder)
    except OSError as error:
        return Outcome(
            2,
            problem=f"{host} does not see the folder {order.working_folder}, in which compare was started "
            f"({error.strerror}); start it in a folder that all machines share",
        )
    times = note_start(order.run.lock, host)
    try:
        return _keep(order, ends, again=order.retry > 0 or times > 1)
    except UserError as error:
        return Outcome(2, problem=f"{host}: {error}")


def _blind(study: Path, host: str) -> str | None:
    """Say why this machine cannot work in the study's folder, or None."""
    lock = study / LOCK
    if not lock.is_file():
        return (
            f"{host} does not see the study's folder {study}; give --output a folder on a file system that all "
            "machines share, under the same path"
        )
    try:
        with lock.open("a") as handle:
            alone = acquire(handle.fileno())
    except OSError as error:
        return f"{host} cannot lock {lock} ({error.strerror}); runs need a file system with locks, writable everywhere"
    if alone:
        return (
            f"as {host} sees it, no compare works in {study}: it has ended, or locks do not reach from one machine to "
            "another on this file system"
        )
    return None


def _different_versions(order: Order, host: str) -> str | None:
    here = installed_versions()
    for name, wanted in order.versions.items():
        if here[name] != wanted:
            return f"{host} has {name} {here[name]}, compare has {wanted}; all machines need the same environment"
    return None


def _keep(order: Order, ends: Callable[[float], bool], *, again: bool) -> Outcome:
    run, requests = order.run, Requests(order.run.lock)
    # What worked on the run before, on a machine that was lost, may still be saving.
    deadline = time.monotonic() + LOCK_SECONDS
    while Orphan(run).alive() and time.monotonic() < deadline:
        if requests.new() or ends(LOOK_SECONDS):
            return _STOPPED
    if requests.new():
        return _STOPPED
    status = read_status(run.folder)
    if again and status is not None and status.state == State.FINISHED and not run.lacks_model:
        return Outcome(0)
    process = launch(run, (sys.executable, *order.arguments))
    while process.alive():
        for signum in requests.new():
            process.signal(signum)
        if ends(LOOK_SECONDS):
            stop([process], order.patience, lambda: bool(requests.new()))
    return Outcome(process.exit_status, process.log_start)


class _Ends:
    """Whether the process that started this one is gone, or this one was asked to end."""

    def __init__(self) -> None:
        self._asked = False
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._note)

    def __call__(self, seconds: float) -> bool:
        readable, _, _ = select.select([sys.stdin], [], [], 0.0 if self._asked else seconds)
        if self._asked or (readable and not sys.stdin.buffer.read(1)):
            self._asked = True
            time.sleep(seconds if not readable else 0.0)
        return self._asked

    def _note(self, *_: object) -> None:
        self._asked = True


def main() -> None:
    """Work on the order that the command line names; print its outcome as one line of JSON."""
    # Ray kills the children of a worker that it ends, but not theirs: the keeper is a grandchild, to let the run save.
    if child := os.fork():
        os.waitpid(child, 0)
        return
    # Ray blocks SIGINT in its workers, and a blocked or ignored signal would stay so in the run.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ends = _Ends()
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        # SLURM may send its warning to all processes of a job; it is meant for submitit, and would end the run.
        signal.signal(signum, signal.SIG_IGN)
    if "SLURM_JOB_ID" in os.environ:
        # The run is a program on one machine, which starts its ranks itself. By this name Lightning knows that.
        os.environ["SLURM_JOB_NAME"] = "interactive"
    outcome = work(Path(sys.argv[1]), sys.argv[2], ends)
    print(json.dumps(outcome_mapping(outcome)), flush=True)


if __name__ == "__main__":
    main()
