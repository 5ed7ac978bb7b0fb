"""Runs on a Ray cluster. Ray chooses the machines, by what each run asks for."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from grpovi_lightning.errors import UserError
from grpovi_lightning.study.launchers.errand import Errand
from grpovi_lightning.study.launchers.extras import need_package
from grpovi_lightning.study.launchers.interface import Process, Site, Start
from grpovi_lightning.study.launchers.needs import Needs, NeedsOfRuns
from grpovi_lightning.study.launchers.orders import Outcome, WorkerLostError
from grpovi_lightning.study.launchers.remote import Job, Lost, RemoteProcess
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.specification import Study

KNOCK_SECONDS = 5.0
"""How long a cluster may take to answer the first connection."""

_ALONE = {
    # Ray's processes then listen on the loopback interface only. The name is Ray's; it works on Linux as well.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of a cluster of this machine alone."""


@dataclass(frozen=True)
class RayLauncher:
    """Has Ray place the runs; without an address on a cluster of this machine alone, which ends with `compare`."""

    address: str | None = None
    """Address of a running cluster; None: RAY_ADDRESS of the environment, as Ray itself reads it."""
    retries: int = 3
    """How often a run whose worker died is placed anew."""
    needs: NeedsOfRuns = field(default_factory=NeedsOfRuns)

    def check(self, study: Study) -> None:
        """Check that Ray is installed, that the needs are of runs that the study has, and that somebody answers."""
        need_package("ray", "ray")
        self.needs.check(study)
        if address := self._address:
            _knock(address)

    @property
    def _address(self) -> str | None:
        return self.address or os.environ.get("RAY_ADDRESS")

    def jobs(self, threads: int, runs: int) -> int:
        """Return all of them: Ray queues what has no room."""
        return max(1, runs)

    @contextmanager
    def opened(self, site: Site) -> Iterator[Start]:
        ray = _connect(self._address)
        told: set[Needs] = set()

        def start(run: Run) -> Process:
            needs = self.needs.of(run)
            if needs not in told and (waiting := _no_room(ray, needs)):
                print(f"{run.label}: {waiting}", flush=True)
            told.add(needs)
            return RemoteProcess(run, site, partial(_submit, ray, needs), self.retries)

        try:
            yield start
        finally:
            ray.shutdown()


def _connect(address: str | None) -> Any:
    if address is None:
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if address else False,
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray cannot start on this machine"
        raise UserError(f"{where}: {_first_line(error)}") from error
    return ray


def _knock(address: str) -> None:
    """Refuse an address at which nothing listens: Ray would try for seven minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`, and whatever else Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}; start one, or give another address") from error


def _no_room(ray: Any, needs: Needs) -> str | None:
    """Say what no machine of the cluster has, as it is now."""
    wanted = {"CPU": needs.cpus or 0, "GPU": needs.gpus, "memory": (needs.memory_gb or 0) * 2**30}
    for node in ray.nodes():
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items()):
            return None
    memory = f", {needs.memory_gb:g} GB" if needs.memory_gb is not None else ""
    return f"no machine of the cluster has {needs.cpus:g} CPUs, {needs.gpus:g} GPUs{memory}; it waits until one joins"


def _submit(ray: Any, needs: Needs, run: Run, errand: Errand) -> Job:
    # No retries of Ray's own: a run that is placed anew begins with another order, which the one before then lacks.
    options: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0, "name": run.label}
    if needs.memory_gb is not None:
        options["memory"] = int(needs.memory_gb * 2**30)
    return RayJob(ray, ray.remote(_work).options(**options).remote(errand))


def _work(errand: Errand) -> dict[str, Any]:
    return errand()


class RayJob:
    """An errand as a task of Ray's."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def ended(self) -> Outcome | Lost | None:
        from ray.exceptions import RayError, RayTaskError

        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return Outcome(**self._ray.get(self._reference))
        except RayTaskError as error:
            if isinstance(error.cause, WorkerLostError):
                return Lost(str(error.cause))
            return Outcome(1, problem=f"its worker failed: {_first_line(error.cause)}")
        except RayError as error:
            return Lost(type(error).__name__)

    def cancel(self) -> None:
        self._ray.cancel(self._reference, force=True)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
