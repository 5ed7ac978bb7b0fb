"""Runs as child processes on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from grpovi_lightning.study.launchers.interface import Process, Site, Start
from grpovi_lightning.study.process import Run, launch
from grpovi_lightning.study.specification import Study


class LocalLauncher:
    """Starts each run as a child process."""

    def check(self, study: Study) -> None:
        """Nothing to check: the processes are of this very Python."""

    def jobs(self, threads: int, runs: int) -> int:
        """Return how many runs the cores of this machine have room for."""
        # A container or `taskset` may leave fewer cores than the machine has.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // threads)

    @contextmanager
    def opened(self, site: Site) -> Iterator[Start]:
        def start(run: Run) -> Process:
            return launch(run, site.program)

        yield start
