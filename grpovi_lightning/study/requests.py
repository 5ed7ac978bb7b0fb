"""Signals for a run on another machine: lines of a file that both machines see."""

from pathlib import Path

_FILE = "requests"


def launch_folder(lock: Path) -> Path:
    """Return the folder of what a run's machine is told, beside the run's lock."""
    return lock.with_name(f"{lock.name}.launch")


def clear_requests(lock: Path) -> None:
    """Begin with no request. The file is there from then on: a new file may be seen late on a network file system."""
    (launch_folder(lock) / _FILE).write_bytes(b"")


def request(lock: Path, signum: int) -> None:
    """Ask the machine of a run to send it a signal."""
    with (launch_folder(lock) / _FILE).open("a", encoding="ascii") as file:
        file.write(f"{int(signum)}\n")


class Requests:
    """The requests for a run, as its machine reads them: each once."""

    def __init__(self, lock: Path) -> None:
        self._file = launch_folder(lock) / _FILE
        self._read = 0

    def new(self) -> list[int]:
        """Return the signals that were asked for since the last time."""
        lines = self._file.read_text(encoding="ascii").splitlines(keepends=True)
        whole = [int(line) for line in lines if line.endswith("\n")]
        found = whole[self._read :]
        self._read = len(whole)
        return found
