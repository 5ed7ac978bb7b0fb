"""Weights in a GGUF file, the format of llama.cpp."""

import importlib.util
from pathlib import Path

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.hub import check_hub, looks_local

_MAGIC = b"GGUF"


def check_gguf(path: str, name: str, revision: str | None = None) -> None:
    """Raise `UserError` where the file `name` of a folder or repository is not there, or nothing can read it."""
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"gguf_file {name}: the package {missing[0]}, by which it is read, is not installed; run pip install "
            "'grpovi-lightning[gguf]'"
        )
    if not looks_local(path):
        check_hub(path, "policy", name, revision)
        return
    file = Path(path, name)
    if not file.is_file():
        there = ", ".join(sorted(other.name for other in Path(path).glob("*.gguf"))) or "no GGUF file"
        raise UserError(f"gguf_file {name}: no such file in {path}; there is {there}")
    with file.open("rb") as content:
        if content.read(len(_MAGIC)) != _MAGIC:
            raise UserError(f"gguf_file {file}: not a GGUF file; expected one that begins with {_MAGIC.decode()}")
