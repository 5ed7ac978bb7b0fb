"""What a study file may say, whether a person wrote it or `grpovi compare` with the contents of its config files."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from grpovi_lightning.run_record.arms import ARM_KEYS, Arm, Config, point_mapping, read_arms, with_points
from grpovi_lightning.run_record.checking import check_choice, check_keys, check_mapping, close_matches, kind
from grpovi_lightning.run_record.layout import PREPARE_FOLDER, SCHEMA, RecordError, check_schema
from grpovi_lightning.run_record.tasks import check_tasks

COMMANDS = ("fit", "task", "sample", "relabel")
STUDY_KEYS = ("name", "seeds", "tuning_seeds", "prepare", "arms", "report", "threads_per_run", "threads_per_stage")
STAGE_KEYS = ("configs", "command")
REPORT_KEYS = ("metric", "target_fraction", "pair_accuracy", "contrasts")
MAX_SEED = 2**32 - 1
"""The largest seed that Lightning's `seed_everything` takes."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_POINT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}@[A-Za-z0-9_][A-Za-z0-9._,=+-]{1,198}")

Other = TypeVar("Other")


@dataclass(frozen=True)
class Stage(Generic[Config]):
    """A process that makes something all arms share: task, preferences, starting policy, completions, reward model."""

    name: str
    configs: tuple[Config, ...]
    command: str = "fit"


@dataclass(frozen=True)
class StudyRecord(Generic[Config]):
    """A study = prepare stages, in order and once, then arms x seeds."""

    name: str = ""
    """Empty where the file names none."""
    seeds: tuple[int, ...] = ()
    tuning_seeds: tuple[int, ...] = ()
    """Seeds on which each arm's best point is chosen, none of `seeds`; empty where nothing is chosen."""
    prepare: tuple[Stage[Config], ...] = ()
    arms: tuple[Arm[Config], ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    """Settings for the report; nothing that runs depends on them."""
    threads_per_run: int = 1
    """CPU threads of one arm's process. Part of the study, not of the machine: sums depend on it in the last bits."""
    threads_per_stage: int = 1
    """CPU threads of a prepare stage, which has the machine to itself."""
    files: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Config name -> parsed content, in the record of a study; empty in a study file that a person wrote."""


def parse_study(content: Any, where: str, *, resolved: bool) -> StudyRecord[str]:
    """Check a parsed study file: everything in it must mean something. What is not in it keeps its default.

    Args:
        content: the file as plain values.
        where: the file's path, which begins every message.
        resolved: whether the file may be the record that `grpovi compare` writes, with `schema` and `files`.

    Raises:
        RecordError: the first mistake, in one line with got and expected; or a newer layout.
    """
    content = check_mapping(content, where)
    if resolved:
        check_schema(content, where)
    check_keys(content, (*STUDY_KEYS, "schema", "files") if resolved else STUDY_KEYS, where)
    prepare = _stages(content.get("prepare"), where)
    entries = _entries(content.get("arms"), (*ARM_KEYS, "point") if resolved else ARM_KEYS, where, "arms", "arm")
    arms = read_arms(entries, where)
    seeds = parse_seeds(content.get("seeds"), f"{where}: seeds")
    check_tasks(arms, bool(content.get("tuning_seeds")), where)
    report = _report(content.get("report"), prepare, list(entries), f"{where}: report")
    return StudyRecord(
        name=_folder_name(content["name"], f"{where}: name") if "name" in content else "",
        seeds=seeds,
        tuning_seeds=_tuning_seeds(content.get("tuning_seeds"), seeds, arms, where),
        prepare=prepare,
        arms=arms,
        report=with_points(report, arms, f"{where}: report"),
        threads_per_run=_threads(content, "threads_per_run", where),
        threads_per_stage=_threads(content, "threads_per_stage", where),
        files=check_mapping(content.get("files") or {}, f"{where}: files"),
    )


def with_configs(
    study: StudyRecord[Config], turn: Callable[[tuple[Config, ...], str], tuple[Other, ...]]
) -> StudyRecord[Other]:
    """Return the study with other things standing for its config files.

    Args:
        study: stays as it is.
        turn: from the config files of a stage or arm, and its name in messages, to what stands for them.
    """
    stages = tuple(
        Stage(each.name, turn(each.configs, f"prepare stage {each.name!r}"), each.command) for each in study.prepare
    )
    turned = {each.written: turn(each.configs, f"arm {each.written!r}") for each in study.arms}
    arms = tuple(Arm(each.name, turned[each.written], each.baseline, each.point, each.task) for each in study.arms)
    return replace(study, prepare=stages, arms=arms)  # type: ignore[arg-type]  replace() cannot change the parameter


def study_mapping(study: StudyRecord[str]) -> dict[str, Any]:
    """Return the study as plain values in the present layout, as `parse_study` reads them."""
    return {
        "schema": SCHEMA,
        "name": study.name,
        "seeds": list(study.seeds),
        **({"tuning_seeds": list(study.tuning_seeds)} if study.tuning_seeds else {}),
        "threads_per_run": study.threads_per_run,
        "threads_per_stage": study.threads_per_stage,
        "prepare": {stage.name: {"command": stage.command, "configs": list(stage.configs)} for stage in study.prepare},
        "arms": {
            arm.name: {"configs": list(arm.configs)}
            | ({"baseline": arm.baseline} if arm.baseline else {})
            | ({"point": point_mapping(arm.point)} if arm.point else {})
            | ({"task": arm.task} if arm.task else {})
            for arm in study.arms
        },
        "report": dict(study.report),
        "files": dict(study.files),
    }


def parse_seeds(value: Any, where: str) -> tuple[int, ...]:
    """Return the seeds of a list, or of text such as `1,2,3`; None has none. `where` begins the error message.

    >>> parse_seeds("1, 2", "--seeds")
    (1, 2)
    """
    if value is None:
        return ()
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise RecordError(f"{where} is {value!r}, expected whole numbers with commas between, such as 1,2,3")
        value = [int(part) for part in parts]
    if not isinstance(value, Sequence):
        raise RecordError(f"{where} is {kind(value)} ({value!r}), expected a list such as [1, 2, 3]")
    for seed in value:
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            raise RecordError(f"{where}: got {seed!r}, expected whole numbers from 0 to {MAX_SEED}")
    if len(set(value)) != len(value):
        twice = next(seed for seed in value if list(value).count(seed) > 1)
        raise RecordError(f"{where}: seed {twice} is given twice; a run repeated under one seed adds no evidence")
    return tuple(value)


def _folder_name(value: Any, where: str, *, of_point: bool = False) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{where} is {kind(value)} ({value!r}), expected text; put it in quotes")
    if not (_POINT_NAME if of_point else _FOLDER_NAME).fullmatch(value):
        raise RecordError(
            f"{where} {value!r} cannot name a folder; expected at most 100 letters, digits and . _ - , "
            "beginning with a letter or digit and not ending with a dot"
        )
    return value


def _entries(value: Any, known: Sequence[str], where: str, section: str, noun: str) -> dict[str, dict[str, Any]]:
    """Check what stages and arms have in common: names that can be folders, known keys, a list of config files."""
    entries = check_mapping({} if value is None else value, f"{where}: {section}")
    folded: dict[str, str] = {}
    for name, entry in entries.items():
        of_point = isinstance(entry, dict) and "point" in entry and "point" in known
        place = f"{where}: {noun} {_folder_name(name, f'{where}: {noun}', of_point=of_point)!r}"
        check_keys(check_mapping(entry, place), known, place)
        configs = entry.get("configs", [])
        if not isinstance(configs, list):
            raise RecordError(f"{place}: configs is {kind(configs)}, expected a list of YAML files such as [grpo.yaml]")
        for config in configs:
            if not isinstance(config, str):
                raise RecordError(f"{place}: config {config!r} is {kind(config)}, expected the path of a YAML file")
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise RecordError(
                f"{where}: {section}: {other!r} and {name!r} are one folder on some file systems; rename one"
            )
    return entries


def _stages(value: Any, where: str) -> tuple[Stage[str], ...]:
    stages = []
    for name, entry in _entries(value, STAGE_KEYS, where, "prepare", "prepare stage").items():
        command = entry.get("command", "fit")
        check_choice(command, COMMANDS, f"{where}: prepare stage {name!r}: unknown command {command!r}")
        stages.append(Stage(name, tuple(entry.get("configs", ())), command))
    return tuple(stages)


def _tuning_seeds(value: Any, seeds: Sequence[int], arms: Sequence[Arm[str]], where: str) -> tuple[int, ...]:
    tuning = parse_seeds(value, f"{where}: tuning_seeds")
    if both := sorted(set(tuning) & set(seeds)):
        raise RecordError(
            f"{where}: seed {both[0]} is among tuning_seeds and among seeds; choose points on other seeds than those "
            "that judge them"
        )
    if tuning and all(arm.point is None for arm in arms):
        raise RecordError(f"{where}: tuning_seeds are given and no arm has `values`, so there is nothing to choose")
    return tuning


def _threads(content: Mapping[str, Any], key: str, where: str) -> int:
    value = content.get(key, 1)
    if type(value) is not int or value < 1:
        raise RecordError(f"{where}: {key} is {value!r}, expected a whole number of at least 1")
    return value


def _report(value: Any, prepare: tuple[Stage[str], ...], arms: list[str], where: str) -> dict[str, Any]:
    settings = check_mapping({} if value is None else value, where)
    check_keys(settings, REPORT_KEYS, where)
    metric = settings.get("metric", "")
    if not isinstance(metric, str):
        raise RecordError(f"{where}: metric is {kind(metric)}, expected the name of a logged scalar")
    fraction = settings.get("target_fraction", 1.0)
    if type(fraction) not in (int, float) or not 0 < fraction <= 1:
        raise RecordError(f"{where}: target_fraction is {fraction!r}, expected a number above 0 and up to 1")
    pairs = settings.get("pair_accuracy")
    runs = [f"{PREPARE_FOLDER}/{stage.name}" for stage in prepare if stage.command == "fit"]
    if pairs is not None:
        wrong = f"{where}: pair_accuracy {pairs!r} is not a prepared run"
        check_choice(pairs, runs, wrong, "none, because no prepare stage trains anything")
    _check_contrasts(settings.get("contrasts") or [], arms, where)
    return dict(settings)


def _check_contrasts(value: Any, arms: list[str], where: str) -> None:
    if not isinstance(value, list):
        raise RecordError(f"{where}: contrasts is {kind(value)}, expected a list such as [[one-arm, another-arm]]")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise RecordError(f"{where}: contrast {pair!r}, expected two different arms such as [one-arm, another-arm]")
        for name in pair:
            if name not in arms:
                got = f"{where}: contrast {pair!r}: {name!r} is no arm{close_matches(str(name), arms)}"
                raise RecordError(f"{got}; expected of {', '.join(arms)}")
