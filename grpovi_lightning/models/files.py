"""Files of a checkpoint folder that cannot be read, in one line each."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from grpovi_lightning.errors import UserError

_LFS_POINTER = b"version https://git-lfs"


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged or unknown file into a `UserError` with its first line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:300]
        kind = "" if first and isinstance(error, OSError | ValueError) else f"{type(error).__name__} "
        raise UserError(f"{what} cannot be loaded: {kind}{first}") from error


def check_files(folder: Path, role: str) -> None:
    """Raise `UserError` for damaged weights, whose headers alone are read, or damaged settings or tokenizer files."""
    for settings in sorted(folder.glob("*.json")):  # some `transformers` leaves out without a word where damaged
        with loading(f"{role} {settings}"):
            json.loads(settings.read_text(encoding="utf-8"))
    for file in sorted(folder.glob("*.safetensors")):
        with loading(f"{role} {file}"), file.open("rb") as weights:
            is_pointer = weights.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            raise UserError(f"{role} {file}: a Git-LFS pointer, expected weights; run git lfs pull in the folder")
        with loading(f"{role} {file}"), safe_open(file, framework="pt"):
            pass
