"""What the runner of a study asks of a launcher, and of what the launcher starts."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from grpovi_lightning.study.process import Run, Stoppable
from grpovi_lightning.study.specification import Study


class Process(Stoppable, Protocol):
    """A run that was started, or that waits for a machine."""

    run: Run
    log_start: int
    """Byte of the run's log at which this attempt begins."""
    problem: str | None
    """Why it ended, where that was not its process's own doing; one line."""

    def begun(self) -> bool:
        """Tell whether it has a machine; before, it waits in a queue."""
        ...

    def news(self) -> list[str]:
        """Return lines about what happened to it since the last call, such as that its machine was lost."""
        ...

    @property
    def exit_status(self) -> int:
        """The status of the ended process; negative: the signal that killed it."""
        ...


Start: TypeAlias = Callable[[Run], Process]
"""Starts a run, or puts it into a queue, and returns at once."""


@dataclass(frozen=True)
class Site:
    """A study's folder, and how its runs are started and ended."""

    folder: Path
    """The study's output folder, which every machine sees under the same path."""
    program: tuple[str, ...]
    """A Python and the first arguments, in front of each command line."""
    patience: float
    """Seconds that a run has to save and leave once it is asked to stop."""


class Launcher(Protocol):
    """Starts the runs of a study somewhere."""

    def check(self, study: Study) -> None:
        """Check what can be checked before anything is written.

        Raises:
            UserError: when the launcher cannot work here, or not for this study.
        """
        ...

    def jobs(self, threads: int, runs: int) -> int:
        """Return how many runs are started or queued at a time where nobody says so.

        Args:
            threads: CPU threads of a run.
            runs: how many runs there may be.
        """
        ...

    def opened(self, site: Site) -> AbstractContextManager[Start]:
        """Connect to where runs are started.

        Raises:
            UserError: when nothing answers there.
        """
        ...
