"""What a study is: prepare stages, then arms x seeds, read from `study.yaml` and checked before anything runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpovi_lightning.errors import UserError
from grpovi_lightning.study.reading import check_keys, check_mapping, close_files, close_matches, kind, read_mapping

COMMANDS = ("fit", "task")
STUDY_KEYS = ("name", "seeds", "prepare", "arms", "report", "threads_per_run", "threads_per_stage")
STAGE_KEYS = ("configs", "command")
ARM_KEYS = ("configs", "baseline")
REPORT_KEYS = ("metric", "target_fraction", "pair_accuracy", "contrasts")
MAX_SEED = 2**32 - 1
"""The largest seed that Lightning's `seed_everything` takes."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")


@dataclass(frozen=True)
class ConfigFile:
    """One YAML file that a process is given with `--config`."""

    name: str
    """As written in study.yaml: relative to the folder of study.yaml."""
    path: Path
    content: dict[str, Any] = field(repr=False)
    """The parsed file. Comments and layout are not part of what a study is."""


@dataclass(frozen=True)
class Stage:
    """A process that makes something all arms share: the task, the starting policy, the reward model."""

    name: str
    configs: tuple[ConfigFile, ...]
    command: str = "fit"


@dataclass(frozen=True)
class Arm:
    """One of the things compared; it runs once a seed."""

    name: str
    configs: tuple[ConfigFile, ...]
    baseline: str | None = None
    """The arm that the report pairs this one with."""


@dataclass(frozen=True)
class Study:
    """A study = prepare stages, in order and once, then arms x seeds."""

    name: str
    seeds: tuple[int, ...]
    prepare: tuple[Stage, ...]
    arms: tuple[Arm, ...]
    report: dict[str, Any]
    """Settings for the report; nothing that runs depends on them."""
    threads_per_run: int = 1
    """CPU threads of one arm's process. Part of the study, not of the machine: sums depend on it in the last bits."""
    threads_per_stage: int = 1
    """CPU threads of a prepare stage, which has the machine to itself."""


def load_study(study_file: str | Path, *, seeds: str | Sequence[int] | None = None) -> Study:
    """Read and check a study file and every config file that it names.

    Args:
        study_file: path of `study.yaml`; config paths in it are relative to its folder.
        seeds: seeds to use instead of the file's: whole numbers, or text such as `1,2,3`.

    Raises:
        UserError: for anything in it that could not run as written.
    """
    path = Path(study_file)
    _check_exists(path)
    content = check_mapping(read_mapping(path), str(path))
    check_keys(content, STUDY_KEYS, str(path))
    if "name" not in content:
        raise UserError(f"{path}: no name; add `name: ...`, it becomes the name of the output folder")
    name = _folder_name(content["name"], f"{path}: name")
    prepare = _stages(content.get("prepare", {}), path)
    arms = _arms(content.get("arms"), path)
    return Study(
        name=name,
        seeds=_seeds(content, seeds, path),
        prepare=prepare,
        arms=arms,
        report=_report(content.get("report", {}), prepare, arms, path),
        threads_per_run=_threads(content, "threads_per_run", path),
        threads_per_stage=_threads(content, "threads_per_stage", path),
    )


def _check_exists(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a study file such as {path / 'study.yaml'}")
    if not path.is_file():
        raise UserError(f"study file {path} does not exist{close_files(path)}; give the path of one")


def _folder_name(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} is {kind(value)} ({value!r}), expected text; put it in quotes")
    if not _FOLDER_NAME.fullmatch(value):
        raise UserError(
            f"{where} {value!r} cannot name a folder; expected at most 100 letters, digits and . _ - , "
            "beginning with a letter or digit and not ending with a dot"
        )
    return value


def _check_distinct(names: Sequence[str], where: str) -> None:
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"{where}: {other!r} and {name!r} are one folder on some file systems; rename one")


def _stages(value: Any, path: Path) -> tuple[Stage, ...]:
    stages = []
    for name, entry in check_mapping({} if value is None else value, f"{path}: prepare").items():
        where = f"{path}: prepare stage {name!r}"
        _folder_name(name, f"{path}: prepare stage")
        entry = check_mapping(entry, where)
        check_keys(entry, STAGE_KEYS, where)
        command = entry.get("command", "fit")
        if command not in COMMANDS:
            hint = close_matches(str(command), COMMANDS)
            raise UserError(f"{where}: unknown command {command!r}{hint}; expected one of {', '.join(COMMANDS)}")
        stages.append(Stage(name, _configs(entry, where, path.parent), command))
    _check_distinct([stage.name for stage in stages], f"{path}: prepare")
    return tuple(stages)


def _arms(value: Any, path: Path) -> tuple[Arm, ...]:
    if not value:
        raise UserError(f"{path}: no arms; add `arms:` with at least one `<name>: {{configs: [...]}}`")
    entries = check_mapping(value, f"{path}: arms")
    arms = []
    for name, entry in entries.items():
        where = f"{path}: arm {name!r}"
        _folder_name(name, f"{path}: arm")
        entry = check_mapping(entry, where)
        check_keys(entry, ARM_KEYS, where)
        baseline = entry.get("baseline")
        others = [other for other in entries if other != name]
        if baseline is not None and baseline not in others:
            hint = close_matches(str(baseline), others)
            expected = f"one of {', '.join(others)}" if others else "none, because there is no other arm"
            raise UserError(f"{where}: baseline {baseline!r} is not another arm{hint}; expected {expected}")
        arms.append(Arm(name, _configs(entry, where, path.parent), baseline))
    _check_distinct([arm.name for arm in arms], f"{path}: arms")
    alone = [arm.name for arm in arms if arm.baseline is None]
    for arm in arms:
        if arm.baseline is not None and arm.baseline not in alone:
            raise UserError(
                f"{path}: arm {arm.name!r}: baseline {arm.baseline!r} has a baseline itself; "
                f"expected an arm without one{': ' + ', '.join(alone) if alone else ''}"
            )
    return tuple(arms)


def _configs(entry: dict[str, Any], where: str, folder: Path) -> tuple[ConfigFile, ...]:
    names = entry.get("configs")
    if not isinstance(names, list) or not names:
        raise UserError(f"{where}: configs is {kind(names)}, expected a list of YAML files such as [grpo.yaml]")
    files = []
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{where}: config {name!r} is {kind(name)}, expected the path of a YAML file")
        config = folder / name
        if not config.is_file():
            raise UserError(
                f"{where}: config file '{config}' does not exist{close_files(config)}; paths in `configs` are relative "
                "to the study file"
            )
        files.append(ConfigFile(name, config, read_mapping(config)))
    return tuple(files)


def _seeds(content: dict[str, Any], given: str | Sequence[int] | None, path: Path) -> tuple[int, ...]:
    where = f"{path}: seeds" if given is None else "--seeds"
    seeds = content.get("seeds") if given is None else given
    if isinstance(seeds, str):
        parts = [part.strip() for part in seeds.split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise UserError(f"{where} is {seeds!r}, expected whole numbers with commas between, such as 1,2,3")
        seeds = [int(part) for part in parts]
    if seeds is None or (isinstance(seeds, Sequence) and not seeds):
        raise UserError(f"{path}: no seeds; add `seeds: [1, 2, 3]` to it or give --seeds 1,2,3")
    if not isinstance(seeds, Sequence):
        raise UserError(f"{where} is {kind(seeds)} ({seeds!r}), expected a list such as [1, 2, 3]")
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            raise UserError(f"{where}: got {seed!r}, expected whole numbers from 0 to {MAX_SEED}")
    if len(set(seeds)) != len(seeds):
        twice = next(seed for seed in seeds if list(seeds).count(seed) > 1)
        raise UserError(f"{where}: seed {twice} is given twice; a run repeated under one seed adds no evidence")
    return tuple(seeds)


def _threads(content: dict[str, Any], key: str, path: Path) -> int:
    value = content.get(key, 1)
    if type(value) is not int or value < 1:
        raise UserError(f"{path}: {key} is {value!r}, expected a whole number of at least 1")
    return value


def _report(value: Any, prepare: tuple[Stage, ...], arms: tuple[Arm, ...], path: Path) -> dict[str, Any]:
    where = f"{path}: report"
    settings = check_mapping({} if value is None else value, where)
    check_keys(settings, REPORT_KEYS, where)
    metric = settings.get("metric", "")
    if not isinstance(metric, str):
        raise UserError(f"{where}: metric is {kind(metric)}, expected the name of a logged scalar")
    fraction = settings.get("target_fraction", 1.0)
    if type(fraction) not in (int, float) or not 0 < fraction <= 1:
        raise UserError(f"{where}: target_fraction is {fraction!r}, expected a number above 0 and up to 1")
    pairs = settings.get("pair_accuracy")
    runs = [f"prepare/{stage.name}" for stage in prepare if stage.command == "fit"]
    if pairs is not None and pairs not in runs:
        hint = close_matches(str(pairs), runs)
        expected = f"one of {', '.join(runs)}" if runs else "none, because no prepare stage trains anything"
        raise UserError(f"{where}: pair_accuracy {pairs!r} is not a prepared run{hint}; expected {expected}")
    _check_contrasts(settings.get("contrasts") or [], [arm.name for arm in arms], where)
    return dict(settings)


def _check_contrasts(value: Any, arms: list[str], where: str) -> None:
    if not isinstance(value, list):
        raise UserError(f"{where}: contrasts is {kind(value)}, expected a list such as [[one-arm, another-arm]]")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(f"{where}: contrast {pair!r}, expected two different arms such as [one-arm, another-arm]")
        for name in pair:
            if name not in arms:
                hint = close_matches(str(name), arms)
                raise UserError(f"{where}: contrast {pair!r}: {name!r} is no arm{hint}; expected of {', '.join(arms)}")
