"""What a study file may say, whether a person wrote it or `grpovi compare` with the contents of its config files."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from grpovi_lightning.run_record.layout import PREPARE_FOLDER, SCHEMA, RecordError, check_schema
from grpovi_lightning.run_record.sweeps import Point, points_of, read_grid

COMMANDS = ("fit", "task", "sample")
STUDY_KEYS = ("name", "seeds", "tuning_seeds", "prepare", "arms", "report", "threads_per_run", "threads_per_stage")
STAGE_KEYS = ("configs", "command")
ARM_KEYS = ("configs", "baseline", "values")
POINT_KEYS = ("arm", "baseline", "values")
REPORT_KEYS = ("metric", "target_fraction", "pair_accuracy", "contrasts")
MAX_SEED = 2**32 - 1
"""The largest seed that Lightning's `seed_everything` takes."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_POINT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}@[A-Za-z0-9_][A-Za-z0-9._,=+-]{1,198}")

Config = TypeVar("Config")
"""What stands for a config file: its name in study.yaml, or the opened file where a study is run."""
Other = TypeVar("Other")


@dataclass(frozen=True)
class Stage(Generic[Config]):
    """A process that makes something all arms share: task, starting policy, completions of it, reward model."""

    name: str
    configs: tuple[Config, ...]
    command: str = "fit"


@dataclass(frozen=True)
class Arm(Generic[Config]):
    """One of the things compared; it runs once a seed. Of an arm with `values`, each point is an arm of its own."""

    name: str
    configs: tuple[Config, ...]
    baseline: str | None = None
    """The arm that the report pairs this one with: for a point, the point of the baseline with the same values."""
    point: Point | None = None
    """What the study file says of the arm whose point this is; None for an arm without `values`."""

    @property
    def written(self) -> str:
        """The name of the arm in the study file."""
        return self.name if self.point is None else self.point.arm

    @property
    def written_baseline(self) -> str | None:
        """The baseline that the study file names."""
        return self.baseline if self.point is None else self.point.baseline


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
    arms = _arms(entries, where)
    seeds = parse_seeds(content.get("seeds"), f"{where}: seeds")
    report = _report(content.get("report"), prepare, list(entries), f"{where}: report")
    return StudyRecord(
        name=_folder_name(content["name"], f"{where}: name") if "name" in content else "",
        seeds=seeds,
        tuning_seeds=_tuning_seeds(content.get("tuning_seeds"), seeds, arms, where),
        prepare=prepare,
        arms=arms,
        report=_with_points(report, arms, f"{where}: report"),
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
    arms = tuple(Arm(each.name, turned[each.written], each.baseline, each.point) for each in study.arms)
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
            | ({"point": _point_mapping(arm.point)} if arm.point else {})
            for arm in study.arms
        },
        "report": dict(study.report),
        "files": dict(study.files),
    }


def _point_mapping(point: Point) -> dict[str, Any]:
    baseline = {"baseline": point.baseline} if point.baseline else {}
    return {"arm": point.arm, **baseline, "values": dict(point.values)}


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
        _check_choice(command, COMMANDS, f"{where}: prepare stage {name!r}: unknown command {command!r}")
        stages.append(Stage(name, tuple(entry.get("configs", ())), command))
    return tuple(stages)


def _arms(entries: Mapping[str, Mapping[str, Any]], where: str) -> tuple[Arm[str], ...]:
    """Read the arms; one with `values` becomes an arm for each of its points."""
    _check_baselines(entries, where)
    points: dict[str, list[Point]] = {}
    for name, entry in entries.items():
        if "values" in entry:
            place = f"{where}: arm {name!r}"
            grid = read_grid(check_mapping(entry["values"], f"{place}: values"), f"{place}: values")
            points[name] = points_of(name, entry.get("baseline"), grid, place)
    arms = []
    for name, entry in entries.items():
        configs, baseline = tuple(entry.get("configs", ())), entry.get("baseline")
        _check_pair(name, baseline, points, f"{where}: arm {name!r}: baseline {baseline!r}")
        if name not in points:
            arms.append(Arm(name, configs, baseline, _recorded_point(entry, f"{where}: arm {name!r}: point")))
        for point in points.get(name, ()):
            arms.append(Arm(point.name, configs, _equal_name(point, baseline, points), point))
    return tuple(arms)


def _recorded_point(entry: Mapping[str, Any], where: str) -> Point | None:
    """Return what a record says of the point that an arm is."""
    if "point" not in entry:
        return None
    said = check_mapping(entry["point"], where)
    check_keys(said, POINT_KEYS, where)
    values = check_mapping(said.get("values"), f"{where}: values")
    grid = read_grid({key: [each] for key, each in values.items()}, f"{where}: values")
    return Point(str(said.get("arm")), said.get("baseline"), {key: each for key, (each,) in grid.items()})


def _check_baselines(entries: Mapping[str, Mapping[str, Any]], where: str) -> None:
    alone = [name for name, entry in entries.items() if entry.get("baseline") is None]
    for name, entry in entries.items():
        if (baseline := entry.get("baseline")) is None:
            continue
        others = [other for other in entries if other != name]
        got = f"{where}: arm {name!r}: baseline {baseline!r}"
        _check_choice(baseline, others, f"{got} is not another arm", "none, because there is no other arm")
        if baseline not in alone:
            names = f": {', '.join(alone)}" if alone else ""
            raise RecordError(f"{got} has a baseline itself; expected an arm without one{names}")


def _check_pair(name: str, other: str | None, points: Mapping[str, Sequence[Point]], got: str) -> None:
    """Refuse a pair of arms in which the second has a grid over a setting that the first leaves alone."""
    if other not in points:
        return
    own = points[name][0].values if name in points else {}
    for key in points[other][0].values:
        if key not in own:
            raise RecordError(
                f"{got} has values for {key} and {name!r} has none, so no points of the two are equal; give {name!r} "
                "the same values"
            )


def _equal_name(point: Point, other: str | None, points: Mapping[str, Sequence[Point]]) -> str | None:
    """Return what `other` runs under at the point's values: itself, one of its points, or nothing."""
    if other is None or other not in points:
        return other
    shared = {key: point.values[key] for key in points[other][0].values}
    return next((equal.name for equal in points[other] if equal.agrees(shared)), None)


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
        _check_choice(pairs, runs, wrong, "none, because no prepare stage trains anything")
    _check_contrasts(settings.get("contrasts") or [], arms, where)
    return dict(settings)


def _with_points(report: dict[str, Any], arms: Sequence[Arm[str]], where: str) -> dict[str, Any]:
    """Return the settings with the points of arms in place of the arms: those of a contrast with equal values."""
    points: dict[str, list[Point]] = {}
    for arm in arms:
        if arm.point is not None:
            points.setdefault(arm.written, []).append(arm.point)
    if not points or not report.get("contrasts"):
        return report
    contrasts = []
    for one, other in report["contrasts"]:
        _check_pair(one, other, points, f"{where}: contrast {[one, other]!r}: {other!r}")
        if one not in points:
            contrasts.append([one, other])
        contrasts += [
            [point.name, equal] for point in points.get(one, ()) if (equal := _equal_name(point, other, points))
        ]
    return report | {"contrasts": contrasts}


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


def check_mapping(value: Any, where: str) -> dict[str, Any]:
    """Return `value` if it is a mapping with string keys; `where` begins the error message."""
    if not isinstance(value, dict):
        raise RecordError(f"{where} is {kind(value)}, expected a mapping of keys to values")
    for key in value:
        if not isinstance(key, str):
            raise RecordError(f"{where}: key {key!r} is {kind(key)}, expected text; put it in quotes")
    return value


def check_keys(mapping: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse keys that nobody would read; `where` begins the error message."""
    for key in mapping:
        _check_choice(key, known, f"{where}: unknown key {key!r}")


def _check_choice(got: Any, options: Sequence[str], wrong: str, none: str = "") -> None:
    """Refuse `got` if it is none of the options: `wrong` begins the message, `none` is expected without options."""
    if got not in options:
        expected = f"one of {', '.join(options)}" if options else none
        raise RecordError(f"{wrong}{close_matches(str(got), options)}; expected {expected}")


def close_matches(got: str, options: Iterable[str]) -> str:
    """Return a `(did you mean ...?)` clause, or nothing when no option resembles `got`.

    >>> close_matches("gprovi", ["grpo", "grpovi", "sft"])
    " (did you mean 'grpovi' or 'grpo'?)"
    """
    matches = difflib.get_close_matches(got, list(options), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(match) for match in matches)}?)" if matches else ""


def kind(value: Any) -> str:
    """Return what a parsed YAML value is, in the words of somebody who writes YAML.

    >>> kind(None), kind([1]), kind(True)
    ('empty', 'a list', 'true/false')
    """
    if value is None:
        return "empty"
    names = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return names.get(type(value), f"a {type(value).__name__}")
