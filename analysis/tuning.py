"""The points of grids: the area that each reached, and the choice of the best point of each arm on the tuning seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.curves import common_span, curves_of
from analysis.errors import ReportError
from analysis.loading import load_study
from analysis.selection import included, runs_of_grid, with_reasons
from analysis.settings import Settings, read_settings
from analysis.tables import rows_where
from grpovi_lightning.run_record.choice import Choice, Score, choose
from grpovi_lightning.run_record.sweeps import Point, text_of


@dataclass(frozen=True)
class Sensitivity:
    """How the area depends on the values: every point of every arm, on the same seeds and over the same steps.

    Attributes:
        metric: The tag; higher is better.
        seeds: The tuning seeds, or the seeds of a study that has none.
        span: Step range (first, last) that all runs of the points without a problem cover.
        points: Name of a point -> the point, in the order of the study.
        scores: Name of a point -> its areas by seed, in units of the metric, and why it cannot be chosen.
        chosen: Names of the points that were chosen; empty where nothing is.
    """

    metric: str
    seeds: tuple[int, ...]
    span: tuple[float, float]
    points: Mapping[str, Point]
    scores: Mapping[str, Score]
    chosen: tuple[str, ...] = ()

    @property
    def arms(self) -> dict[str, dict[str, Point]]:
        """Arm of the study file -> its points."""
        arms: dict[str, dict[str, Point]] = {}
        for name, point in self.points.items():
            arms.setdefault(point.arm, {})[name] = point
        return arms

    @property
    def problems(self) -> list[tuple[str, str]]:
        """The points that cannot be chosen, each with the reason."""
        return [(name, score.problem) for name, score in self.scores.items() if score.problem is not None]

    def edges(self, name: str) -> list[str]:
        """Say which values of a point are the last of at least three, so that the best one may lie beyond."""
        point, found = self.points[name], []
        for key, value in point.values.items():
            others = {other.values[key] for other in self.arms[point.arm].values()}
            numbers = sorted(each for each in others if isinstance(each, int | float) and not isinstance(each, bool))
            if len(numbers) == len(others) >= 3 and value in (numbers[0], numbers[-1]):
                end = "smallest" if value == numbers[0] else "largest"
                found.append(f"{key.rpartition('.')[2]}={text_of(value)}, the {end} of the grid")
        return found


def sensitivity_of(runs: pd.DataFrame, status: pd.DataFrame, settings: Settings) -> Sensitivity | None:
    """Measure every point; None for a study without `values`.

    Args:
        runs: As from `load_runs`.
        status: As from `load_status`, of all runs.
        settings: The study's, with its metric.
    """
    if not settings.points:
        return None
    status = with_reasons(runs_of_grid(status, settings), runs, settings.metric)
    curves = curves_of(included(runs, status), settings.metric)
    problems = {name: _problem(rows_where(status, status["arm"] == name)) for name in settings.points}
    span = common_span(
        curve for name, problem in problems.items() if problem is None for curve in curves[name].values()
    )
    scores = {}
    for name, problem in problems.items():
        areas = {} if problem else {seed: curve.mean_over(*span) for seed, curve in curves[name].items()}
        if problem is None and span[0] >= span[1]:
            areas, problem = {}, "the runs of the points share no range of steps"
        scores[name] = Score(areas, problem)
    chosen = () if settings.choice is None else tuple(settings.choice.chosen.values())
    return Sensitivity(settings.metric, settings.grid_seeds, span, settings.points, scores, chosen)


def _problem(rows: pd.DataFrame) -> str | None:
    """Return why a point cannot be chosen: all its runs have to count."""
    reasons = [
        f"seed {seed}: {reason}"
        for seed, reason in zip(rows["seed"], rows["reason"], strict=True)
        if reason is not None
    ]
    if not reasons:
        return None
    return reasons[0] + (f" (and {len(reasons) - 1} of its other runs)" if len(reasons) > 1 else "")


def choose_points(study_dir: str | Path) -> Choice:
    """Choose the best point of each arm: that of the largest mean over the tuning seeds of the area under the curve.

    Args:
        study_dir: A study with tuning seeds, whose tuning runs are over.

    Returns:
        The choice; nothing is written.

    Raises:
        ReportError: The folder is missing, holds no runs, or has no tuning seeds.
        RecordError: An arm has no point that can be chosen: of each, a run failed or its metric was not finite.
    """
    runs, status = load_study(study_dir)
    settings = read_settings(study_dir, runs, status)
    found = sensitivity_of(runs, status, settings)
    if settings.study is None or not settings.study.tuning_seeds or found is None:
        raise ReportError(f"{study_dir} has no tuning seeds, so there is nothing to choose; add `tuning_seeds`")
    return choose(settings.study, settings.metric, found.span, found.scores)
