"""The exceptions whose messages are for the user, not for a developer."""


class UserError(ValueError):
    """A mistake that the user can mend: the message says what was got, what was expected and what to do.

    The command line prints it as one line and exits with status 2. Other exceptions keep their traceback: they are
    defects of this package or of what it runs on.
    """


class TrainingError(RuntimeError):
    """The reason why training stopped: the message names the cause and what was kept.

    The command line prints it as one line and exits with status 1.
    """
