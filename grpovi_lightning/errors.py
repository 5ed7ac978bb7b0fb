"""The exceptions whose messages are for the user, not for a developer, and what many of the messages share."""

import errno
import os
import re
from collections.abc import Mapping
from typing import Any

SECRET_NAME = re.compile(r"token|key|secret|passw|credential", re.IGNORECASE)
"""What the names of environment variables have that hold what nobody else may read."""
_SHORTEST_SECRET = 8

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_SAID_OF_IT = ("os error 28", "os error 122", "os error 27", "PytorchStreamWriter failed writing", "file write failed")
"""Words of libraries that have no number of the system's in their errors."""


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


def failed_write(error: BaseException) -> str | None:
    """Return what the system says where an error is that a file could not be written; None for any other error.

    >>> failed_write(OSError(errno.ENOSPC, "No space left on device", "runs/a/status.json"))
    'No space left on device: runs/a/status.json'
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _NO_ROOM:
            file = found.filename2 or found.filename  # the second is where something was moved or copied to
            return (found.strerror or str(found)) + (f": {file}" if file else "")
        if any(words in str(found) for words in _SAID_OF_IT):
            return " ".join(str(found).split())[:200]
        found = found.__cause__ or found.__context__
    return None


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text with the names of environment variables in the place of what tokens and keys among them hold.

    >>> without_secrets("401 for hf_abcdefgh", {"HF_TOKEN": "hf_abcdefgh"})
    '401 for <HF_TOKEN>'
    """
    for name, value in environment.items():
        if len(value) >= _SHORTEST_SECRET and SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>")
    return text
