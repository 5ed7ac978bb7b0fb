"""Signals as something to look at between two steps, instead of an exception in the middle of one."""

import signal
from types import FrameType
from typing import Any, Self


class Interruption:
    """While open, SIGINT, SIGTERM and SIGHUP are counted and nothing else happens.

    An exception raised by a signal could fall between the start of a process and the note that it was started,
    and would leave it running.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, Any] = {}

    @property
    def exit_status(self) -> int:
        """Status that a shell expects of a program ended by the first signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.received[0]

    def __enter__(self) -> Self:
        """Begin to count. Must run in the main thread."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` asks for SIGHUP to be ignored; that wish is kept.
            if signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN:
                continue
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back to whoever had them."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received.append(signum)
