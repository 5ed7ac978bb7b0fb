"""How far a study is: a live table in a terminal, plain lines in a pipe or a log."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grpovi_lightning.run_record.status import RunRecord, State
from grpovi_lightning.study.process import Run

LINE_SECONDS = 30.0
"""How often plain output says how far everything is."""

WAITING = "waiting"
"""State of a run that this `compare` has not started yet, beside the states that a run records."""

QUEUED = "queued"
"""State of a run that was handed over to Ray or SLURM, and has no machine yet."""

_ORDER = (State.RUNNING, QUEUED, State.FAILED, State.INTERRUPTED, WAITING, State.FINISHED)
_STYLES: dict[str, str] = dict(zip(_ORDER, ("cyan", "dim cyan", "bold red", "yellow", "dim", "green"), strict=True))


@dataclass
class RunProgress:
    """Where one run is; the runner changes it, displays read it."""

    run: Run
    state: str = WAITING
    step: int = 0
    max_steps: int = 0
    error: str | None = None
    began: float | None = None
    """Monotonic seconds at which this `compare` started the run; None when it did not."""
    began_at_step: int = 0
    ended: float | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds that this `compare` has spent on the run, or None when it did not start it."""
        if self.began is None:
            return None
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in (State.FINISHED, State.FAILED, State.INTERRUPTED)

    @property
    def fraction(self) -> float:
        """Share of its steps that are done."""
        if self.over:
            return 1.0
        return min(1.0, self.step / self.max_steps) if self.max_steps else 0.0

    def follow(self, status: RunRecord) -> None:
        """Take over how far the run says it is."""
        self.step, self.max_steps = status.step or 0, status.max_steps or 0


def remaining_seconds(runs: Sequence[RunProgress], jobs: int) -> float | None:
    """Estimate the time that the arms still take, or None while nothing tells how fast they are.

    Args:
        runs: all runs of the study. Prepare stages are left out: their steps cost something else.
        jobs: how many run at a time.
    """
    arms = [run for run in runs if run.run.seed is not None]
    measured = [run for run in arms if run.seconds is not None and run.max_steps and run.step > run.began_at_step]
    share = sum((run.step - run.began_at_step) / run.max_steps for run in measured)
    left = [run for run in arms if not run.over]
    if not share or not left:
        return None
    seconds_per_run = sum(run.seconds or 0.0 for run in measured) / share
    longest = max(1.0 - run.fraction for run in left)
    return seconds_per_run * max(longest, sum(1.0 - run.fraction for run in left) / jobs)


class LineDisplay:
    """One line when a run starts or ends, and one about everything now and then."""

    def __init__(self, runs: Sequence[RunProgress], jobs: int, console: Console) -> None:
        self._runs, self._jobs, self._console = runs, jobs, console
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Say something that belongs to no run."""
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False, soft_wrap=True)

    def changed(self, run: RunProgress) -> None:
        """Show that a run started or ended."""
        self.note(f"{run.run.label}: {_happened(run)}")

    def refresh(self) -> None:
        """Show how far everything is by now, when it is time for that."""
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            running = ", ".join(f"{run.run.label} {_steps(run)}" for run in self._runs if run.state == State.RUNNING)
            self.note(overall(self._runs, self._jobs) + (f": {running}" if running else ""))


class LiveDisplay:
    """A table that is redrawn in place: one row a run, what matters now on top."""

    def __init__(self, runs: Sequence[RunProgress], jobs: int, console: Console) -> None:
        self._runs, self._jobs, self._console = runs, jobs, console
        # Drawn by the runner's own loop: a drawing thread would be one more thing alive while processes are forked.
        self._live = Live(console=console, auto_refresh=False)
        self._last = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()
        self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def changed(self, run: RunProgress) -> None:
        self._draw()

    def refresh(self) -> None:
        if time.monotonic() - self._last >= 0.5:
            self._draw()

    def _draw(self) -> None:
        self._last = time.monotonic()
        self._live.update(self.render(), refresh=True)

    def render(self) -> Group:
        """Return the overall line and bar, then as many runs as the terminal has lines for."""
        done = sum(run.fraction for run in self._runs)
        rows = sorted(self._runs, key=lambda run: _ORDER.index(run.state))
        room = max(3, self._console.height - 5)
        table = Table.grid(padding=(0, 2))
        for run in rows[:room]:
            bar = ProgressBar(total=1.0, completed=run.fraction if run.state != State.FAILED else 0.0, width=20)
            clock = "" if run.seconds is None else duration(run.seconds)
            state = Text(run.state, style=_STYLES[run.state])
            table.add_row(Text(run.run.label), state, bar, _steps(run), clock, Text(run.error or "", no_wrap=True))
        hidden = [Text(f"and {len(rows) - room} more", style="dim")] if len(rows) > room else []
        total = Table.grid(expand=True)
        total.add_row(ProgressBar(total=float(len(rows)), completed=done))
        return Group(Text(overall(self._runs, self._jobs)), total, table, *hidden)


Display = LineDisplay | LiveDisplay


def make_display(runs: Sequence[RunProgress], jobs: int, console: Console) -> Display:
    """Return the display that suits the console: live in a terminal, lines elsewhere."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveDisplay(runs, jobs, console) if live else LineDisplay(runs, jobs, console)


def overall(runs: Sequence[RunProgress], jobs: int) -> str:
    """Say in one line how many runs are where, and the time left."""
    if any(run.state == QUEUED for run in runs):
        # Somebody else's queue: as many run at a time as have a machine now.
        jobs = max(1, sum(run.state == State.RUNNING for run in runs))
    left = remaining_seconds(runs, jobs)
    return states(runs) + (f", about {duration(left)} left" if left is not None else "")


def states(runs: Sequence[RunProgress]) -> str:
    """Say how many runs are in which state."""
    counts = Counter(run.state for run in runs)
    parts = [f"{counts[State.FINISHED]} of {len(runs)} runs finished"]
    parts += [
        f"{counts[state]} {state}"
        for state in (State.RUNNING, QUEUED, WAITING, State.FAILED, State.INTERRUPTED)
        if counts[state]
    ]
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Put seconds into words short enough for a table.

    >>> duration(42.2), duration(185), duration(7800)
    ('42 s', '3 min 5 s', '2 h 10 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _steps(run: RunProgress) -> str:
    return f"{run.step}/{run.max_steps}" if run.max_steps else ""


def _happened(run: RunProgress) -> str:
    if run.state == State.RUNNING:
        # Its last checkpoint may be of another step than what it recorded every few seconds.
        return f"continues; last recorded at step {run.began_at_step}" if run.began_at_step else "started"
    if run.state == QUEUED:
        return "queued"
    if run.state == State.FINISHED:
        return "finished earlier" if run.seconds is None else f"finished in {duration(run.seconds)}"
    where = f" at step {_steps(run)}" if run.max_steps else ""
    return f"{run.state}{where}" + (f": {run.error}" if run.error else "")
