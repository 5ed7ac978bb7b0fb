"""The exceptions whose messages are written for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can mend: the message says what was got, what was expected and what to do.

    The command line prints it as a single line and exits with status 2. Every other exception is a
    defect of this package or of its surroundings and keeps its traceback.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on, found while training: the message names the cause and what was kept.

    The command line prints it as a single line and exits with status 1.
    """
