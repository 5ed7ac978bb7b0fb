"""A study's folder: who may write to it, and the record of which study it holds."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from grpovi_lightning.errors import UserError
from grpovi_lightning.study.reading import first_difference, read_mapping
from grpovi_lightning.study.specification import Arm, ConfigFile, Stage, Study

LOCK = ".lock"
RECORD = "study.yaml"
_HEADER = "# Written by `grpovi compare`: the study that this folder holds, with the contents of its config files.\n"


def resolve(study: Study) -> dict[str, Any]:
    """The study as plain values, in the shape of a study file plus `files`: the contents of every config file."""
    entries: tuple[Stage | Arm, ...] = (*study.prepare, *study.arms)
    return {
        "name": study.name,
        "seeds": list(study.seeds),
        "threads_per_run": study.threads_per_run,
        "threads_per_stage": study.threads_per_stage,
        "prepare": {
            stage.name: {"command": stage.command, "configs": _names(stage.configs)} for stage in study.prepare
        },
        "arms": {
            arm.name: {"configs": _names(arm.configs)} | ({"baseline": arm.baseline} if arm.baseline else {})
            for arm in study.arms
        },
        "report": dict(study.report),
        "files": {config.name: config.content for entry in entries for config in entry.configs},
    }


def check_folder(folder: Path, study: Study) -> Study:
    """Check that the study may go into `folder`; nothing is written.

    What was recorded may not change, because runs were made with it. Seeds and arms may be added, a subset of
    the recorded seeds may be asked for, and report settings and baselines may change: no run depends on them.

    Args:
        folder: the study's output folder, which need not exist.
        study: the study to run now.

    Returns:
        What to record: `study` with the seeds of both.

    Raises:
        UserError: when the folder holds another study or something that is no study.
    """
    remedy = f"give --output another folder, or remove {folder}"
    if not folder.exists():
        return study
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, expected the folder of a study; {remedy}")
    if not (folder / RECORD).is_file():
        others = [entry.name for entry in folder.iterdir() if entry.name != LOCK]
        if others:
            raise UserError(f"{folder} holds {sorted(others)[0]!r} but no {RECORD}, so it is not a study; {remedy}")
        return study
    recorded = read_mapping(folder / RECORD)
    try:
        difference = _difference(recorded, resolve(study))
        seeds = [int(seed) for seed in recorded["seeds"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{folder / RECORD} is not a record that `grpovi compare` wrote; {remedy}") from None
    if difference:
        raise UserError(f"{folder} holds a different study: {difference}; {remedy}")
    return replace(study, seeds=(*seeds, *(seed for seed in study.seeds if seed not in seeds)))


def write_record(folder: Path, study: Study) -> None:
    """Write `study.yaml` of the study's folder, whole or not at all."""
    text = _HEADER + yaml.safe_dump(resolve(study), sort_keys=False, allow_unicode=True, width=120)
    target = folder / RECORD
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return
    partial = folder / f"{RECORD}.{os.getpid()}.tmp"
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the study's folder for one `compare`, making it if needed.

    The lock is the operating system's, so it ends with the process that holds it, however that ends.

    Raises:
        UserError: when another process holds it, or when the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("a")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; give --output a writable folder") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another `grpovi compare` works in {folder}; wait for it, stop it, or give --output another folder"
            ) from None
        yield


def changed_config(config: ConfigFile) -> str | None:
    """Say how a config file differs from what was checked when `compare` began, or None when it does not."""
    if not config.path.is_file():
        return f"{config.name} was removed"
    try:
        difference = first_difference(config.content, read_mapping(config.path))
    except UserError as error:
        return str(error)
    return f"{config.name} was edited: {difference}" if difference else None


def _names(configs: tuple[ConfigFile, ...]) -> list[str]:
    return [config.name for config in configs]


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str | None:
    for key in ("name", "threads_per_run", "threads_per_stage"):
        if there[key] != here[key]:
            return f"{key} is {here[key]!r} now and {there[key]!r} there"
    if list(there["prepare"]) != list(here["prepare"]):
        stages = (", ".join(entries["prepare"]) or "none" for entries in (here, there))
        return "the prepare stages are {} now and {} there".format(*stages)
    for section, noun in (("prepare", "prepare stage"), ("arms", "arm")):
        for name, entry in there[section].items():
            if name not in here[section]:
                return f"{noun} {name!r} is there and not in the study now"
            if difference := _entry_difference(there, entry, here, here[section][name]):
                return f"{noun} {name!r}: {difference}"
    return None


def _entry_difference(
    there: dict[str, Any], there_entry: dict[str, Any], here: dict[str, Any], here_entry: dict[str, Any]
) -> str | None:
    if there_entry.get("command") != here_entry.get("command"):
        return f"command is {here_entry['command']!r} now and {there_entry['command']!r} there"
    if len(there_entry["configs"]) != len(here_entry["configs"]):
        return f"configs are {here_entry['configs']} now and {there_entry['configs']} there"
    for there_name, here_name in zip(there_entry["configs"], here_entry["configs"], strict=True):
        # Contents count, not file names: a renamed file with the same content makes the same runs.
        if difference := first_difference(there["files"][there_name], here["files"][here_name]):
            return f"{here_name}: {difference}"
    return None
