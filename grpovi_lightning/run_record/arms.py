"""The arms of a study: as a person writes them, with a grid of `values`, and as they run, a point each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from grpovi_lightning.run_record.checking import check_choice, check_keys, check_mapping, kind
from grpovi_lightning.run_record.layout import RecordError
from grpovi_lightning.run_record.sweeps import Point, points_of, read_grid

ARM_KEYS = ("configs", "baseline", "values", "task")
POINT_KEYS = ("arm", "baseline", "values")

Config = TypeVar("Config")
"""What stands for a config file: its name in study.yaml, or the opened file where a study is run."""


@dataclass(frozen=True)
class Arm(Generic[Config]):
    """One of the things compared; it runs once a seed. Of an arm with `values`, each point is an arm of its own."""

    name: str
    configs: tuple[Config, ...]
    baseline: str | None = None
    """The arm that the report pairs this one with: for a point, the point of the baseline with the same values."""
    point: Point | None = None
    """What the study file says of the arm whose point this is; None for an arm without `values`."""
    task: str | None = None
    """What the arm learns, where a study compares methods over several tasks."""

    @property
    def written(self) -> str:
        """The name of the arm in the study file."""
        return self.name if self.point is None else self.point.arm

    @property
    def written_baseline(self) -> str | None:
        """The baseline that the study file names."""
        return self.baseline if self.point is None else self.point.baseline


def read_arms(entries: Mapping[str, Mapping[str, Any]], where: str) -> tuple[Arm[str], ...]:
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
        task = _task(entry.get("task"), f"{where}: arm {name!r}: task")
        _check_pair(name, baseline, points, f"{where}: arm {name!r}: baseline {baseline!r}")
        if name not in points:
            arms.append(Arm(name, configs, baseline, _recorded_point(entry, f"{where}: arm {name!r}: point"), task))
        for point in points.get(name, ()):
            arms.append(Arm(point.name, configs, _equal_name(point, baseline, points), point, task))
    return tuple(arms)


def _task(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise RecordError(f"{where} is {kind(value)} ({value!r}), expected the name of a task; put it in quotes")
    return value


def _recorded_point(entry: Mapping[str, Any], where: str) -> Point | None:
    """Return what a record says of the point that an arm is."""
    if "point" not in entry:
        return None
    said = check_mapping(entry["point"], where)
    check_keys(said, POINT_KEYS, where)
    values = check_mapping(said.get("values"), f"{where}: values")
    grid = read_grid({key: [each] for key, each in values.items()}, f"{where}: values")
    if not isinstance(said.get("arm"), str):
        raise RecordError(f"{where}: arm is {said.get('arm')!r}, expected the name of an arm")
    return Point(said["arm"], said.get("baseline"), {key: each for key, (each,) in grid.items()})


def _check_baselines(entries: Mapping[str, Mapping[str, Any]], where: str) -> None:
    alone = [name for name, entry in entries.items() if entry.get("baseline") is None]
    for name, entry in entries.items():
        if (baseline := entry.get("baseline")) is None:
            continue
        others = [other for other in entries if other != name]
        got = f"{where}: arm {name!r}: baseline {baseline!r}"
        check_choice(baseline, others, f"{got} is not another arm", "none, because there is no other arm")
        if baseline not in alone:
            names = f": {', '.join(alone)}" if alone else ""
            raise RecordError(f"{got} has a baseline itself; expected an arm without one{names}")


def _check_pair(name: str, other: str | None, points: Mapping[str, Sequence[Point]], got: str) -> None:
    """Refuse a pair of arms in which the second has a grid over a setting that the first leaves alone."""
    if other is None or other not in points:
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


def points_by_arm(arms: Sequence[Arm[Any]]) -> dict[str, dict[str, Point]]:
    """Return arm of the study file -> name of each of its points -> the point."""
    points: dict[str, dict[str, Point]] = {}
    for arm in arms:
        if arm.point is not None:
            points.setdefault(arm.written, {})[arm.name] = arm.point
    return points


def with_points(report: dict[str, Any], arms: Sequence[Arm[str]], where: str) -> dict[str, Any]:
    """Return the settings with the points of arms in place of the arms: those of a contrast with equal values."""
    points = {name: list(of_arm.values()) for name, of_arm in points_by_arm(arms).items()}
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


def point_mapping(point: Point) -> dict[str, Any]:
    """Return what a record says of a point, as plain values."""
    baseline = {"baseline": point.baseline} if point.baseline else {}
    return {"arm": point.arm, **baseline, "values": dict(point.values)}
