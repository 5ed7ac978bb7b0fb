"""Runs as jobs of SLURM, one each, by submitit; SLURM queues, places, pre-empts."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.run_record.checking import check_choice
from grpovi_lightning.study.launchers.errand import Errand
from grpovi_lightning.study.launchers.extras import need_package
from grpovi_lightning.study.launchers.interface import Process, Site, Start
from grpovi_lightning.study.launchers.needs import NeedsOfRuns
from grpovi_lightning.study.launchers.orders import Outcome, WorkerLostError
from grpovi_lightning.study.launchers.remote import Job, Lost, RemoteProcess
from grpovi_lightning.study.process import TERMINATE_SECONDS, Run
from grpovi_lightning.study.record import JOBS
from grpovi_lightning.study.specification import Study

RESULT_SECONDS = 3.0
"""How long the outcome of a job that is over may take to be seen. One that comes later costs a look at its run."""


@dataclass(frozen=True)
class SlurmLauncher:
    """Submits each run as a job. A job that is pre-empted saves, is queued again, and goes on."""

    cluster: str = "slurm"
    """`local`: submitit's own processes on this machine, in place of SLURM."""
    minutes: int = 24 * 60
    """Time limit of a job. A job that reaches it saves and is queued again."""
    requeues: int = 10
    """How often a job may reach its time limit; pre-emptions do not count."""
    retries: int = 3
    """How often a run whose machine died is submitted anew."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """submitit's settings for `sbatch`: `{slurm_partition: gpu, slurm_account: me}`."""
    needs: NeedsOfRuns = field(default_factory=NeedsOfRuns)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UserError: one of them cannot be.
        """
        at_least_one("launcher settings: ", minutes=self.minutes)
        check_choice(self.cluster, ("slurm", "local"), f"launcher settings: cluster is {self.cluster!r}")

    def check(self, study: Study) -> None:
        """Check that submitit is installed, and that the needs are of runs that the study has."""
        need_package("slurm", "submitit")
        self.needs.check(study)
        if self.cluster == "slurm" and shutil.which("srun") is None:
            raise UserError(
                "--launcher slurm: this machine has no srun; start compare on a machine of the SLURM cluster, or give "
                "`cluster: local` in --launcher-settings to try jobs here"
            )

    def jobs(self, threads: int, runs: int) -> int:
        """Return all of them: SLURM queues what has no room."""
        return max(1, runs)

    @contextmanager
    def opened(self, site: Site) -> Iterator[Start]:
        executor = self._executor(site)

        def submit(run: Run, errand: Errand) -> Job:
            needs = self.needs.of(run)
            executor.update_parameters(
                name=run.label.replace(" ", "-"),
                cpus_per_task=ceil(needs.cpus or 1),
                gpus_per_node=ceil(needs.gpus),
                mem_gb=needs.memory_gb,
            )
            try:
                return SlurmJob(executor.submit(errand))
            except (OSError, RuntimeError) as error:
                raise UserError(f"{run.label} cannot be submitted: {_last_line(str(error))}") from error

        def start(run: Run) -> Process:
            return RemoteProcess(run, site, submit, self.retries)

        yield start

    def _executor(self, site: Site) -> Any:
        import submitit

        folder = (site.folder / JOBS).absolute()
        # Time to save, between the warning and the end of a job.
        saving = ceil(site.patience + 2 * TERMINATE_SECONDS) + 10
        try:
            executor = submitit.AutoExecutor(folder, self.cluster, slurm_max_num_timeout=self.requeues)
            executor.update_parameters(
                timeout_min=self.minutes,
                tasks_per_node=1,
                nodes=1,
                slurm_signal_delay_s=saving,
                **self.parameters,
            )
        except (AssertionError, NameError, RuntimeError, ValueError) as error:
            raise UserError(f"--launcher slurm: {' '.join(str(error).split())}") from error
        return executor


class SlurmJob:
    """An errand as a job of SLURM's, or of submitit's local executor."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._done_at: float | None = None

    def ended(self) -> Outcome | Lost | None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if not self._job.done():
            return None
        if not self._job.paths.result_pickle.exists():
            # submitit itself would wait here, and no other run would be looked after meanwhile.
            self._done_at = self._done_at or time.monotonic()
            if time.monotonic() - self._done_at < RESULT_SECONDS:
                return None
            state = self._job.state
            if state.startswith("CANCEL"):
                return Outcome(1, problem=f"job {self._job.job_id} was cancelled")
            return Lost(f"job {self._job.job_id} ended as {state}")
        name = f"job {self._job.job_id}"
        try:
            return Outcome(**self._job.result())
        except FailedJobError as error:
            said = _last_line(str(error))
            return (
                Lost(f"{name}: {said}") if WorkerLostError.__name__ in said else Outcome(1, problem=f"{name}: {said}")
            )
        except UncompletedJobError as error:
            return Lost(f"{name}: {_last_line(str(error))}")

    def cancel(self) -> None:
        self._job.cancel(check=False)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and set(line.strip()) != {"-"}]
    return lines[-1] if lines else "no reason given"
