"""The command line, called in this process."""

from grpovi_lightning.cli import main


def refusal(capsys, *arguments, status=2) -> str:
    """Run a command that must end with this status and one line of error; return the line without its beginning."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpovi: error: ")]
    assert len(lines) == 1, lines
    return lines[0].removeprefix("grpovi: error: ")
