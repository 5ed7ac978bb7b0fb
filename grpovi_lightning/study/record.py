"""A study's folder: who may write to it, and the record of which study it holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.layout import STUDY_FILE, RecordError, replace_file
from grpovi_lightning.run_record.lock import acquire
from grpovi_lightning.run_record.study import Arm, StudyRecord, parse_study, study_mapping, with_configs
from grpovi_lightning.run_record.sweeps import text_of
from grpovi_lightning.study.reading import first_difference
from grpovi_lightning.study.specification import ConfigFile, Study
from grpovi_lightning.yaml_files import read_mapping

LOCK = ".lock"
JOBS = ".jobs"
"""Folder of what submitit writes: scripts, errands, what jobs print."""
_HEADER = "# Written by `grpovi compare`: the study that this folder holds, with the contents of its config files.\n"


def resolve(study: Study) -> StudyRecord[str]:
    """Return the study as it is recorded: config files by name, and their contents in `files`."""
    files = {config.name: config.content for entry in (*study.prepare, *study.arms) for config in entry.configs}
    named = with_configs(study, lambda configs, _: tuple(config.name for config in configs))
    return replace(named, files=files)


def check_folder(folder: Path, study: Study) -> Study:
    """Check that the study may go into `folder`; nothing is written.

    What was recorded may not change, because runs were made with it. Seeds and arms may be added, a subset of
    the recorded seeds may be asked for, and report settings and baselines may change: no run depends on them. So may
    tuning seeds and values be added; the points are then chosen anew.

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
    if not (folder / STUDY_FILE).is_file():
        others = [entry.name for entry in folder.iterdir() if entry.name not in (LOCK, JOBS)]
        if others:
            raise UserError(f"{folder} holds {sorted(others)[0]!r} but no {STUDY_FILE}, so it is not a study; {remedy}")
        return study
    try:
        recorded = parse_study(read_mapping(folder / STUDY_FILE), str(folder / STUDY_FILE), resolved=True)
    except RecordError as error:
        raise UserError(f"{error}; {remedy}") from None
    names = {name for entry in (*recorded.prepare, *recorded.arms) for name in entry.configs}
    if not recorded.seeds or not names or not names <= set(recorded.files):
        raise UserError(f"{folder / STUDY_FILE} is not a record that `grpovi compare` wrote; {remedy}")
    difference = _difference(recorded, resolve(study))
    if difference:
        raise UserError(f"{folder} holds a different study: {difference}; {remedy}")
    seeds = (*recorded.seeds, *(seed for seed in study.seeds if seed not in recorded.seeds))
    if both := sorted(set(seeds) & {*study.tuning_seeds, *recorded.tuning_seeds}):
        raise UserError(
            f"{folder}: seed {both[0]} is to choose points and to judge them, one of the two in earlier runs there; "
            f"take another seed, or {remedy}"
        )
    return replace(study, seeds=seeds)


def write_record(folder: Path, study: Study) -> None:
    """Write `study.yaml` of the study's folder, whole or not at all."""
    text = _HEADER + yaml.safe_dump(study_mapping(resolve(study)), sort_keys=False, allow_unicode=True, width=120)
    target = folder / STUDY_FILE
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        replace_file(target, text)


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
        if not acquire(handle.fileno()):
            raise UserError(
                f"another `grpovi compare` works in {folder}; wait for it, stop it, or give --output another folder"
            )
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


def _difference(there: StudyRecord[str], here: StudyRecord[str]) -> str | None:
    for key in ("name", "threads_per_run", "threads_per_stage"):
        if getattr(there, key) != getattr(here, key):
            return f"{key} is {getattr(here, key)!r} now and {getattr(there, key)!r} there"
    if [stage.name for stage in there.prepare] != [stage.name for stage in here.prepare]:
        stages = (", ".join(stage.name for stage in study.prepare) or "none" for study in (here, there))
        return "the prepare stages are {} now and {} there".format(*stages)
    for old, new in zip(there.prepare, here.prepare, strict=True):
        if old.command != new.command:
            return f"prepare stage {old.name!r}: command is {new.command!r} now and {old.command!r} there"
        if difference := _configs_difference(there, old.configs, here, new.configs):
            return f"prepare stage {old.name!r}: {difference}"
    if set(there.tuning_seeds) - set(here.tuning_seeds):
        return f"tuning_seeds are {list(here.tuning_seeds)} now and {list(there.tuning_seeds)} there"
    arms = {arm.name: arm for arm in here.arms}
    for arm in there.arms:
        if arm.name not in arms:
            return f"arm {arm.name!r} is there and not in the study now"
        if difference := first_difference(_values(arm), _values(arms[arm.name])):
            return f"arm {arm.name!r}: values: {difference}"
        if difference := _configs_difference(there, arm.configs, here, arms[arm.name].configs):
            return f"arm {arm.name!r}: {difference}"
    return None


def _values(arm: Arm[str]) -> dict[str, str]:
    return {} if arm.point is None else {key: text_of(value) for key, value in arm.point.values.items()}


def _configs_difference(
    there: StudyRecord[str], old: tuple[str, ...], here: StudyRecord[str], new: tuple[str, ...]
) -> str | None:
    if len(old) != len(new):
        return f"configs are {list(new)} now and {list(old)} there"
    for old_name, new_name in zip(old, new, strict=True):
        # Contents count, not file names: a renamed file with the same content makes the same runs.
        if difference := first_difference(there.files[old_name], here.files[new_name]):
            return f"{new_name}: {difference}"
    return None
