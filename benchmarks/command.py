"""The frame of every script's command line. Standard library only: TRL's Python need not have this project."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

Errors = tuple[type[Exception], ...]


class InputError(ValueError):
    """Something the user can mend; the message is one line. The package's `UserError` is out of reach here."""


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
    *,
    least: Mapping[str, int] | None = None,
    refused: Errors = (),
    failed: Errors = (),
) -> int:
    """Parse `argv` and run; return the exit status.

    An expected error becomes one line on stderr, which begins with the parser's `prog`: the exit status is 2 for an
    argument below `least`, `InputError`, `OSError` and the errors `refused`, 1 for the errors `failed`.
    """
    arguments = parser.parse_args(argv)
    try:
        for name, smallest in (least or {}).items():
            value = getattr(arguments, name)
            if value is not None and value < smallest:
                raise InputError(f"--{name.replace('_', '-')}: got {value}, expected at least {smallest}")
        run(arguments)
    except (InputError, OSError, *refused, *failed) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, failed) else 2
    return 0
