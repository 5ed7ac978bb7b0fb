"""Methods compared over several tasks: interquartile mean, probability of improvement, performance profiles.

After Agarwal et al. 2021 (arXiv 2108.13264), as rliable computes them. Intervals are where we depart from it: rliable's
are percentiles of the stratified bootstrap, which with 3 to 5 seeds a task are too narrow (docs/statistics.md). Here
they are Student's t with the standard error of that bootstrap.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.claims import Claim, corrected
from analysis.curves import Curve, common_span, curves_of
from analysis.efficiency import Target, target_of
from analysis.errors import ReportError
from analysis.loading import load_study
from analysis.selection import included, with_planned_runs, with_reasons
from analysis.settings import Settings, read_settings
from analysis.statistics import LEVEL, Estimate
from analysis.task_statistics import (
    Scores,
    estimate_over_tasks,
    interquartile_mean,
    iqm_difference,
    mean_of_tasks,
    probability_of_improvement,
    profile_of,
    within,
)
from analysis.wording import count, number, spread
from grpovi_lightning.run_record.choice import judged
from grpovi_lightning.run_record.tasks import arms_by_method

PROFILE_POINTS = 61


@dataclass(frozen=True)
class TaskScale:
    """What makes the areas of a task comparable with those of others: 0 is `first`, 1 is `target`."""

    task: str
    first: float
    """Mean over the baseline's seeds of the first value."""
    target: float
    """The baseline's target; NaN where it did not rise, and then nothing is compared."""


@dataclass(frozen=True)
class MethodOverTasks:
    """One method over all tasks.

    Attributes:
        method: Its name: those of its arms without the task.
        baseline: The method that all others are compared with; None for itself.
        scores: Task -> seed -> score: (area - first) / (target - first) on the scale of the task.
        iqm: Interquartile mean of all scores: the mean of the middle half.
        mean: Mean over tasks of the mean over seeds.
        difference: Its interquartile mean - the baseline's, over the seeds that both have on a task.
        improvement: Chance that a run of it scores above one of the baseline on the same task, mean over tasks; a draw
            counts half.
    """

    method: str
    baseline: str | None
    scores: Scores
    iqm: Estimate
    mean: Estimate
    difference: Estimate
    improvement: Estimate

    def row(self) -> dict[str, object]:
        """Return the row of the table; what is not known is NaN."""
        row: dict[str, object] = {"method": self.method, "baseline": self.baseline or "", "n_tasks": len(self.scores)}
        row["n_runs"] = sum(map(len, self.scores.values()))
        for name in ("iqm", "mean", "difference", "improvement"):
            estimate: Estimate = getattr(self, name)
            row |= {name: estimate.point, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return row


@dataclass(frozen=True)
class TasksComparison:
    """The methods of a study over its tasks.

    Attributes:
        metric: The tag whose area is scored; higher is better.
        scales: One a task, in the order of the study.
        methods: The baseline first.
        unknown: Why nothing can be compared, or None.
    """

    metric: str
    scales: tuple[TaskScale, ...]
    methods: tuple[MethodOverTasks, ...]
    unknown: str | None = None

    def table(self) -> pd.DataFrame:
        """Return a row for each method.

        Returns:
            `method`, `baseline`, `n_tasks`, `n_runs`; `iqm`, `mean`, `difference` and `improvement` as
            `MethodOverTasks` describes them, each with the ends of its 95 % interval in `_low` and `_high`.
        """
        return pd.DataFrame([method.row() for method in self.methods])


def tasks_comparison(study_dir: str | Path, *, metric: str | None = None) -> TasksComparison:
    """Compare the methods of a study over its tasks.

    Args:
        study_dir: A study whose arms have a `task`.
        metric: The tag that is scored, instead of study.yaml's.

    Raises:
        ReportError: The folder holds no such study, or nothing has been chosen in it yet.
    """
    runs, status = load_study(study_dir)
    settings = read_settings(study_dir, runs, status, metric=metric)
    found = tasks_of(runs, with_reasons(with_planned_runs(status, settings), runs, settings.metric), settings)
    if found is None:
        why = settings.notes[0] if settings.tasks and settings.notes else "give its arms a `task` in its study file"
        raise ReportError(f"{study_dir}: no methods are compared over several tasks: {why}")
    return found


def tasks_of(runs: pd.DataFrame, status: pd.DataFrame, settings: Settings) -> TasksComparison | None:
    """Compute the comparison; None for a study without tasks, or with points that are not chosen yet.

    Args:
        runs: As from `load_runs`.
        status: As from `with_reasons`.
        settings: Of the study.
    """
    if settings.study is None or not settings.tasks or (settings.study.tuning_seeds and settings.choice is None):
        return None
    best = {} if settings.choice is None else {each.arm: each.best for each in judged(settings.study, settings.choice)}
    alone = {arm.written for arm in settings.study.arms if arm.written_baseline is None}
    methods = {
        method: {task: best.get(arm, arm) for task, arm in of_task.items()}
        for method, of_task in sorted(
            arms_by_method(settings.study.arms).items(), key=lambda item: not alone.issuperset(item[1].values())
        )
    }
    curves = curves_of(included(runs, status), settings.metric)
    baseline = next(iter(methods))
    scales, scores = [], {method: dict[str, dict[int, float]]() for method in methods}
    for task in methods[baseline]:
        of_method = {method: curves.get(arms[task], {}) for method, arms in methods.items()}
        target = target_of(list(of_method[baseline].values()), settings)
        scales.append(TaskScale(task, target.first, target.value))
        for method, found in _scores(of_method, target).items():
            scores[method][task] = found
    unknown = _unknown(scales, scores)
    compared = () if unknown else tuple(_over_tasks(scores, method, baseline, settings.level) for method in methods)
    return TasksComparison(settings.metric, tuple(scales), compared, unknown)


def _scores(of_method: Mapping[str, Mapping[int, Curve]], target: Target) -> dict[str, dict[int, float]]:
    span = common_span([curve for curves in of_method.values() for curve in curves.values()])
    if not span[0] < span[1]:
        return {method: {} for method in of_method}
    height = target.value - target.first
    return {
        method: {seed: (curve.mean_over(*span) - target.first) / height for seed, curve in curves.items()}
        for method, curves in of_method.items()
    }


def _unknown(scales: Sequence[TaskScale], scores: Mapping[str, Scores]) -> str | None:
    for scale in scales:
        for method, of_task in scores.items():
            if not of_task[scale.task]:
                return f"no run of {method} counts on the task {scale.task}, so nothing is compared over the tasks"
        if math.isnan(scale.target) or scale.target <= scale.first:
            return f"the baseline did not rise on the task {scale.task}, so its scores have no scale"
    return None


def _over_tasks(scores: Mapping[str, Scores], method: str, baseline: str, level: float) -> MethodOverTasks:
    own, theirs = scores[method], scores[baseline]
    values = [np.array(list(seeds.values())) for seeds in own.values()]
    nothing = Estimate(math.nan, math.nan, math.nan, level=level)
    difference = improvement = nothing
    if method != baseline:
        both = {task: sorted(set(own[task]) & set(theirs[task])) for task in own}
        ours, others = (
            [np.array([of[task][seed] for seed in seeds]) for task, seeds in both.items()] for of in (own, theirs)
        )
        if all(seeds for seeds in both.values()):
            difference = estimate_over_tasks(ours, others, iqm_difference, level, neutral=0.0)
            chance = estimate_over_tasks(ours, others, probability_of_improvement, level, neutral=0.5)
            improvement = within(chance, 0.0, 1.0)
    return MethodOverTasks(
        method=method,
        baseline=None if method == baseline else baseline,
        scores=own,
        iqm=estimate_over_tasks(values, values, lambda ours, _: interquartile_mean(*ours), level),
        mean=estimate_over_tasks(values, values, lambda ours, _: mean_of_tasks(ours), level),
        difference=difference,
        improvement=improvement,
    )


@dataclass(frozen=True)
class Profile:
    """How large a share of a method's runs scores above a threshold, each task weighing the same."""

    method: str
    thresholds: np.ndarray
    shares: np.ndarray


def profiles(comparison: TasksComparison) -> list[Profile]:
    """Return the performance profile of each method, over the range of all scores."""
    values = [value for method in comparison.methods for seeds in method.scores.values() for value in seeds.values()]
    if not values:
        return []
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05
    thresholds = np.linspace(low - margin, high + margin, PROFILE_POINTS)
    return [Profile(method.method, thresholds, profile_of(method.scores, thresholds)) for method in comparison.methods]


def sentences_of(comparison: TasksComparison) -> list[str]:
    """Say in plain words what was found over the tasks; the answers are corrected (Holm) for each other."""
    if comparison.unknown is not None:
        return [f"{comparison.unknown[0].upper()}{comparison.unknown[1:]}."]
    compared = [method for method in comparison.methods if method.baseline is not None]
    claims = corrected([(method.difference, 0) for method in compared])
    return [_sentence(method, claim) for method, claim in zip(compared, claims, strict=True)]


def _sentence(method: MethodOverTasks, claim: Claim) -> str:
    tasks = count(len(method.scores), "task")
    if math.isnan(claim.p):
        return (
            f"{method.method} against {method.baseline} over {tasks}: difference in the interquartile mean of scores "
            f"{number(method.difference.point, signed=True)}; no interval, which takes two seeds a task that differ."
        )
    ends = spread(method.difference, signed=True)
    difference = f"{number(method.difference.point, signed=True)} ({ends})"
    said = {1: "scores higher than", -1: "scores lower than", 0: "cannot be told from"}[claim.direction]
    level = "" if method.difference.level == LEVEL else ", at the level of this look"
    return (
        f"Over {tasks} {method.method} {said} {method.baseline}{level}: difference in the interquartile mean of scores "
        f"{difference}; a run of it scores above one of {method.baseline} on the same task with a chance of "
        f"{number(method.improvement.point)}."
    )
