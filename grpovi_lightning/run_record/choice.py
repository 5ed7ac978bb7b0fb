"""choice.json of a study: which point of each arm was the best on the tuning seeds, and what is judged therefore."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from grpovi_lightning.run_record.arms import points_by_arm
from grpovi_lightning.run_record.layout import CHOICE_FILE, SCHEMA, RecordError, check_schema, replace_file
from grpovi_lightning.run_record.study import StudyRecord


@dataclass(frozen=True)
class Score:
    """What a point reached on the tuning seeds."""

    areas: Mapping[int, float]
    """Tuning seed -> area under the held-out curve, divided by its span, in units of the metric. Of runs that count."""
    problem: str | None = None
    """Why the point cannot be chosen; None where it can."""

    @property
    def mean(self) -> float:
        """The mean area over the tuning seeds; there must be one."""
        return fmean(self.areas.values())


@dataclass(frozen=True)
class Choice:
    """The best point of each arm by the mean area over the tuning seeds."""

    metric: str
    tuning_seeds: tuple[int, ...]
    span: tuple[float, float]
    """Range of steps (first, last) that the areas are taken over."""
    scores: Mapping[str, Score]
    """Name of a point -> its score, in the order of the study."""
    chosen: Mapping[str, str]
    """Arm in the study file -> name of its best point."""


@dataclass(frozen=True)
class Judged:
    """What of an arm of the study file runs on the seeds that judge."""

    arm: str
    baseline: str | None
    """An arm of the study file."""
    best: str
    """Its best point, or the arm itself where it has no `values`."""
    equal: str | None
    """Where it has a baseline: what of it has the settings of the baseline's best point; None where nothing has."""


def choose(study: StudyRecord[Any], metric: str, span: tuple[float, float], scores: Mapping[str, Score]) -> Choice:
    """Choose the point of the largest mean area for each arm; of equal ones the first.

    Raises:
        RecordError: an arm has no point that can be chosen.
    """
    chosen = {}
    for arm, points in points_by_arm(study.arms).items():
        usable = [point for point in points if scores[point].problem is None]
        if not usable:
            first = next(iter(points))
            raise RecordError(
                f"arm {arm!r}: none of its {len(points)} points can be chosen ({first}: {scores[first].problem}); mend "
                "the cause and run the same command again"
            )
        chosen[arm] = max(usable, key=lambda point: scores[point].mean)
    return Choice(metric, study.tuning_seeds, span, dict(scores), chosen)


def judged(study: StudyRecord[Any], choice: Choice) -> list[Judged]:
    """Return what runs on the seeds that judge, an entry for each arm of the study file, in its order."""
    points = points_by_arm(study.arms)
    found: dict[str, Judged] = {}
    for arm in study.arms:
        name, baseline, equal = arm.written, arm.written_baseline, None
        if name in found:
            continue
        own, theirs = points.get(name, {}), points.get(baseline or "", {})
        if baseline is not None and own:
            values = theirs[choice.chosen[baseline]].values if theirs else {}
            agree = [point for point, its in own.items() if its.agrees(values) and not choice.scores[point].problem]
            equal = max(agree, key=lambda point: choice.scores[point].mean, default=None)
        elif baseline is not None:
            equal = name
        found[name] = Judged(name, baseline, choice.chosen.get(name, name), equal)
    return list(found.values())


def judged_arms(study: StudyRecord[Any], choice: Choice | None) -> list[str]:
    """Return the names, in the study's order, of what runs on `study.seeds`.

    Args:
        study: without tuning seeds, all its arms run on its seeds.
        choice: None where nothing has been chosen yet: then no point of a tuned study is among them.
    """
    if not study.tuning_seeds:
        return [arm.name for arm in study.arms]
    names = {arm.name for arm in study.arms if arm.point is None}
    if choice is not None:
        names |= {name for each in judged(study, choice) for name in (each.best, each.equal) if name is not None}
    return [arm.name for arm in study.arms if arm.name in names]


def outdated(study: StudyRecord[Any], choice: Choice) -> str | None:
    """Say why a choice is not that of the study, or None where it is."""
    by_arm = points_by_arm(study.arms)
    points = [arm.name for arm in study.arms if arm.point is not None]
    if set(points) != set(choice.scores):
        return f"the grids have {len(points)} points now and had {len(choice.scores)}"
    if set(choice.chosen) != set(by_arm):
        return f"it chooses for the arms {', '.join(choice.chosen) or 'none'}, expected {', '.join(by_arm)}"
    if set(study.tuning_seeds) != set(choice.tuning_seeds):
        return f"the tuning seeds are {list(study.tuning_seeds)} now and were {list(choice.tuning_seeds)}"
    if (metric := study.report.get("metric", choice.metric)) != choice.metric:
        return f"the metric is {metric} now and was {choice.metric}"
    return None


def write_choice(folder: Path, choice: Choice) -> None:
    """Write choice.json of a study's folder, whole or not at all."""
    scores = {
        name: {"areas": {str(seed): area for seed, area in score.areas.items()}, "problem": score.problem}
        for name, score in choice.scores.items()
    }
    content = {"schema": SCHEMA, "metric": choice.metric, "tuning_seeds": list(choice.tuning_seeds)}
    content |= {"span": list(choice.span), "scores": scores, "chosen": dict(choice.chosen)}
    replace_file(folder / CHOICE_FILE, json.dumps(content, indent=1) + "\n")


def read_choice(folder: Path) -> Choice | None:
    """Return what choice.json of a study's folder says; None where there is none.

    Raises:
        RecordError: it cannot be read, or has a newer layout.
    """
    path = folder / CHOICE_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_schema(content, str(path))
        scores = {
            name: Score({int(seed): float(area) for seed, area in score["areas"].items()}, score["problem"])
            for name, score in content["scores"].items()
        }
        first, last = map(float, content["span"])
        seeds, chosen = tuple(map(int, content["tuning_seeds"])), {str(k): str(v) for k, v in content["chosen"].items()}
        choice = Choice(str(content["metric"]), seeds, (first, last), scores, chosen)
    except RecordError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} cannot be read ({type(error).__name__}); remove it to choose anew") from None
    if not set(chosen.values()) <= set(scores):
        raise RecordError(f"{path} chooses a point that it has no score of; remove it to choose anew")
    return choice
