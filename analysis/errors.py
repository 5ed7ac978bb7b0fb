"""The exception whose message is written for the person at the keyboard."""


class ReportError(ValueError):
    """Something the user can mend: the message says what was got, what was expected and what to do.

    The command line prints it as a single line. Every other exception is a defect and keeps its traceback.
    """
