"""Wall-clock time of a step and of its phases."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from grpovi_lightning import metric_keys as keys


class StepClock:
    """Times the phases of one step. On a GPU it waits for the device, so that each phase gets its own time."""

    def __init__(self) -> None:
        """Starts empty."""
        self.seconds: dict[str, float] = {}
        self._begin = 0.0

    def start(self) -> None:
        """Begins a step."""
        self.seconds = {}
        self._begin = _now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the phase `name`."""
        begin = _now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + _now() - begin

    def total_seconds(self) -> float:
        """Ends the step; returns its seconds and notes them as `step_time`."""
        self.seconds[keys.STEP_TIME] = _now() - self._begin
        return self.seconds[keys.STEP_TIME]


def _now() -> float:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
