"""What the package's log says, shown to the person at the terminal."""

import logging
import sys

from lightning.pytorch.utilities import rank_zero_only


class _ToTerminal(logging.Handler):
    """Writes to what is standard error at the time; what only informs is said by the first process alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or getattr(rank_zero_only, "rank", 0) == 0:
            print(self.format(record), file=sys.stderr)


def show_notes() -> None:
    """Show what is logged from now on; a second call changes nothing."""
    log = logging.getLogger(__package__)
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _ToTerminal) for handler in log.handlers):
        log.addHandler(_ToTerminal())
