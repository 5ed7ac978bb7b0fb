"""What a checkpoint is on disk: a file, or a folder into which each process wrote its part; and whether it is whole."""

import json
import re
import struct
import zipfile
from pathlib import Path

LAST_CHECKPOINT = "last.ckpt"
REST_FILE = "rest.pt"
"""In the folder of a checkpoint: everything but the tensors that are spread over processes."""
_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors takes no longer one."""
_PART = re.compile(r"part_(\d{1,6})_of_(\d{1,6})\.safetensors")


def part_files(folder: Path, count: int) -> list[Path]:
    """Return the files of the parts of a checkpoint that `count` processes write, in the order of the processes.

    >>> [file.name for file in part_files(Path("step=4.ckpt"), 2)]
    ['part_1_of_2.safetensors', 'part_2_of_2.safetensors']
    """
    return [folder / f"part_{number}_of_{count}.safetensors" for number in range(1, count + 1)]


def found_parts(folder: Path) -> list[Path]:
    """Return the files that the parts of a checkpoint lie in if it is whole; none if their names disagree."""
    counts = {int(match[2]) for file in folder.iterdir() if (match := _PART.fullmatch(file.name))}
    return part_files(folder, counts.pop()) if len(counts) == 1 else []


def flaw(path: Path) -> str | None:
    """Return what a checkpoint lacks to be whole, as the end of a sentence about it; None where it is whole.

    A process that is killed while it writes a file leaves no end of the archive, or less than the header announces.
    """
    if not path.is_dir():
        return None if zipfile.is_zipfile(path) else "a file that is no checkpoint or was cut short"
    try:
        return _flaw_of_folder(path)
    except OSError as error:  # it may be removed meanwhile
        return f"a folder that cannot be read ({error.strerror})"


def is_whole_checkpoint(path: Path) -> bool:
    """Tell whether a checkpoint was written to its end."""
    return path.exists() and flaw(path) is None


def last_checkpoint(folder: Path) -> Path | None:
    """Return `last.ckpt` of a folder, or where that was cut short the newest checkpoint that was not."""
    whole = [path for path in folder.glob("*.ckpt") if is_whole_checkpoint(path)]
    return max(whole, key=lambda path: (path.name == LAST_CHECKPOINT, path.stat().st_mtime), default=None)


def _flaw_of_folder(path: Path) -> str | None:
    parts = found_parts(path)
    if not parts:
        return "a folder that does not hold the parts of one checkpoint"
    lacking = [file.name for file in [path / REST_FILE, *parts] if not file.is_file()]
    if lacking:
        return f"a folder without {lacking[0]}"
    cut = [file.name for file in parts if not _is_whole_part(file)]
    cut += [] if zipfile.is_zipfile(path / REST_FILE) else [REST_FILE]
    return f"a folder whose {cut[0]} is damaged or was cut short" if cut else None


def _is_whole_part(file: Path) -> bool:
    """Tell whether a safetensors file has the size that its header announces.

    It begins with the length of the header, 8 bytes; then come the header, which is JSON, and the numbers.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size or length > _LONGEST_HEADER:
            return False
        try:
            header = json.loads(handle.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0) == size
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):  # it is something else
            return False
