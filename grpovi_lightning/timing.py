"""Where the time of a training step goes: a clock that runs with the step, and named phases anywhere below it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from grpovi_lightning import metric_keys as keys

_Mark = float | torch.cuda.Event
_running: ContextVar["StepClock | None"] = ContextVar("running", default=None)


class StepClock:
    """Times one step and its phases.

    On a GPU the marks are events in its stream, so that no phase waits for the device, and each gets the time that
    the device spent on it. Phases do not nest: their seconds and a rest add up to the step's.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[str, _Mark, _Mark]] = []
        self._begin: _Mark = 0.0

    def start(self) -> None:
        """Begin a step; phases count from here on."""
        self._marks, self._begin = [], _mark()
        _running.set(self)

    def stop(self) -> dict[str, float]:
        """End the step.

        Returns:
            seconds of the step as `step_time`, and of each phase, 0 for one that did not occur.
        """
        _running.set(None)
        end = _mark()
        seconds = dict.fromkeys(keys.STEP_PHASES, 0.0) | {keys.STEP_TIME: _seconds(self._begin, end)}
        for name, begin, stop in self._marks:
            seconds[name] += _seconds(begin, stop)
        return seconds

    def note(self, name: str, begin: _Mark, end: _Mark) -> None:
        """Add a phase."""
        self._marks.append((name, begin, end))


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Count the time spent inside as the phase `name`, one of `metric_keys.STEP_PHASES`, if a step is being timed."""
    clock = _running.get()
    if clock is None:
        yield
        return
    begin = _mark()
    yield
    clock.note(name, begin, _mark())


def _mark() -> _Mark:
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begin: _Mark, end: _Mark) -> float:
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    assert not isinstance(end, torch.cuda.Event), "the device was not ready when the step began"
    return end - begin
