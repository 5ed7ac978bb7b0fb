"""The exceptions whose messages are for the user, not for a developer, and what many of the messages share."""

from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend: the message says what was got, what was expected and what to do.

    The command line prints it as one line and exits with status 2. Other exceptions keep their traceback: they are
    defects of this package or of what it runs on.
    """


class TrainingError(RuntimeError):
    """The reason why training stopped: the message names the cause and what was kept.

    The command line prints it as one line and exits with status 1.
    """


def at_least_one(where: str, **settings: int | None) -> None:
    """Raise `UserError` for the first of these settings that is below 1; None says that it is not set."""
    for name, value in settings.items():
        if value is not None and value < 1:
            raise UserError(f"{where}{name}: got {value}, expected at least 1")


def shown(value: Any) -> str:
    """Return a value for a message, cut where it is long.

    >>> shown("a") + shown([1, 2])
    "'a'[1, 2]"
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
