"""Names of files and folders, the version of their layout, and how a file is written whole."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATUS_FILE = "status.json"
STUDY_FILE = "study.yaml"
PREFERENCES_FILE = "preferences.jsonl"
CONFIG_FILE = "config.yaml"
CHOICE_FILE = "choice.json"
LOOKS_FILE = "looks.json"
SCALARS_FILE = ".scalars.parquet"
"""What reports keep of the log files of a run, so that they need not read them again."""
LOG_FILE = "process.log"
PREPARE_FOLDER = "prepare"
ARMS_FOLDER = "arms"
REPORT_FOLDER = "report"
CHECKPOINTS_FOLDER = "checkpoints"
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
COMPLETIONS_FOLDER = "completions"

SCHEMA = 2
"""Version of the layout of status.json and study.yaml, under their key `schema`. Files without the key have layout 1,
which lacks `adjusts` in status.json and is otherwise the same."""

_SEED_FOLDER = re.compile(r"seed_(\d+)")


class RecordError(ValueError):
    """A record on disk, or a study file, that cannot be used: the message is one line for its user."""


def run_folder(arm: str, seed: int) -> str:
    """Return where a study keeps a run, relative to its folder.

    >>> run_folder("grpo", 3)
    'arms/grpo/seed_3'
    """
    return f"{ARMS_FOLDER}/{arm}/seed_{seed}"


def folder_seed(name: str) -> int | None:
    """Return the seed that a run's folder is named after, or None for another name.

    >>> folder_seed("seed_3"), folder_seed("grpo")
    (3, None)
    """
    match = _SEED_FOLDER.fullmatch(name)
    return int(match.group(1)) if match else None


def folder_arm(folder: Path) -> str:
    """Return the arm that a run's folder is named after: the folder above `seed_<k>`, else the folder itself.

    >>> folder_arm(Path("arms/grpo/seed_3")), folder_arm(Path("runs/first_try"))
    ('grpo', 'first_try')
    """
    return folder.name if folder_seed(folder.name) is None else folder.parent.name


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a whole file at once: whoever reads it meanwhile sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # there only where writing failed


def check_schema(content: Mapping[str, Any], where: str) -> int:
    """Return the layout of a parsed record; `where` begins the message of the `RecordError` for a newer one."""
    schema = content.get("schema", 1)
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise RecordError(
            f"{where} has layout {schema!r}, and this version of grpovi reads layouts 1 to {SCHEMA}; use the version "
            "that wrote it, or a newer one"
        )
    return schema
