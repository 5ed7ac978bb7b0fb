"""What the package's log says, shown to the person at the terminal."""

import logging
import sys
import threading

from lightning.pytorch.utilities import rank_zero_only

from grpovi_lightning.errors import without_secrets


class _ToTerminal(logging.Handler):
    """Writes to what is standard error at the time; what only informs is said by the first process alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or getattr(rank_zero_only, "rank", 0) == 0:
            print(without_secrets(self.format(record)), file=sys.stderr)


def show_notes() -> None:
    """Show what is logged from now on; a second call changes nothing."""
    log = logging.getLogger(__package__)
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _ToTerminal) for handler in log.handlers):
        log.addHandler(_ToTerminal())


def quiet_writers() -> None:
    """Let threads that write event files fail without a traceback of their own: the next write of the run raises it."""
    usual = threading.excepthook

    def hook(given: threading.ExceptHookArgs, /) -> None:
        writes = type(given.thread).__module__.startswith("tensorboard.")
        if not (writes and isinstance(given.exc_value, OSError)):
            usual(given)

    threading.excepthook = hook
