"""The pictures of the report: which figures there are for an analysis, and their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import figures
from analysis.curves import Curves, beside, curves_of, thinned
from analysis.errors import ReportError
from analysis.online import against_labels, agreement_names
from analysis.several_tasks import profiles
from analysis.several_tasks_figure import profiles_figure
from analysis.study import Analysis, analyse
from analysis.style import ArmStyle, arm_styles
from analysis.svg import inline, to_svg
from analysis.tables import rows_where
from grpovi_lightning import metric_keys

Pictures = Mapping[str, Sequence["Picture"]]
"""section -> its pictures"""

DRAWN_POINTS = 10_000
"""Points of one picture's thin lines together, at most: a page of a hundred long runs would be tens of megabytes."""


@dataclass(frozen=True)
class Picture:
    """A picture of the report: file name without ending, what it shows, the figure, and the same as an SVG document."""

    name: str
    description: str
    figure: Figure
    svg: str

    @property
    def inline(self) -> Markup:
        """Markup of the picture as part of the page."""
        return inline(self.svg, self.name, self.description)


def report_figures(
    study_dir: str | Path, *, metric: str | None = None, baseline: str | None = None, target: float | None = None
) -> dict[str, Figure]:
    """Draw the pictures of a study's report, for a notebook or a paper; nothing is written.

    Args:
        study_dir: A study (with study.yaml), or a folder of bare runs.
        metric: As of `write_report`, like `baseline` and `target`.
        baseline: The arm that all others are compared with.
        target: The value to reach.

    Returns:
        Name -> figure, in the order of the page. The names are those of the report's files, such as
        `learning_metric`; there is none for what no run logged.

    Raises:
        ReportError: As of `write_report`.
    """
    pictures = draw(analyse(study_dir, metric=metric, baseline=baseline, target=target))
    return {picture.name: picture.figure for section in pictures.values() for picture in section}


def metric_figure(runs: pd.DataFrame, metric: str) -> Figure:
    """Draw any logged metric against policy updates: mean, band and seeds of every arm.

    Args:
        runs: As from `analysis.load_runs`, or rows of it; at most one run an arm and seed.
        metric: A tag of the column `metric`.

    Raises:
        ReportError: No run logged `metric`.
    """
    curves = curves_of(runs, metric)
    if not curves:
        raise ReportError(
            f"no run has a finite value of {metric!r}; logged are {', '.join(sorted(set(runs['metric'])))}"
        )
    return figures.learning_figure(metric, metric, curves, arm_styles(list(curves), {}, {}))


def draw(analysis: Analysis) -> Pictures:
    """Draw pictures by section: `learning`, `paired`, `kl`, `online`, `grids`, `tasks`; none for what no run logged."""
    grids = {"grids": _grids(analysis), "tasks": _tasks(analysis)}
    if not analysis.curves:
        return {"learning": [], "paired": [], "kl": [], "online": []} | grids
    return {
        "learning": _learning(analysis),
        "paired": _paired(analysis),
        "kl": _against_kl(analysis),
        "online": _online(analysis),
    } | grids


def styles_of(analysis: Analysis) -> dict[str, ArmStyle]:
    """Choose how each arm is drawn; the adjustment's name stands for the algorithm."""
    return arm_styles(analysis.arms, analysis.settings.baselines, adjustments_of(analysis))


def adjustments_of(analysis: Analysis) -> dict[str, str]:
    """Return the class of each arm's adjustment, for the arms that recorded one."""
    names = zip(analysis.status["arm"], analysis.status["adjustment"], strict=True)
    return {arm: name for arm, name in names if name is not None}


def drawn_points(analysis: Analysis) -> int:
    """Return how many points a curve of a picture has at most."""
    n_curves = sum(len(seeds) for seeds in analysis.curves.values())
    return min(400, max(60, DRAWN_POINTS // max(1, n_curves)))


def is_thinned(analysis: Analysis) -> bool:
    """Tell whether a picture shows less than every value of a run."""
    metric = analysis.settings.metric
    panels = [
        *figures.learning_panels(metric),
        *figures.agreement_panels(agreement_names(analysis.runs)),
        *figures.online_panels(metric),
    ]
    drawn = rows_where(analysis.runs, analysis.runs["metric"].isin([panel.metric for panel in panels]))
    lengths = drawn.groupby(["run", "metric"], observed=True, sort=False).size()
    return max(lengths.tolist(), default=0) > drawn_points(analysis)


def _picture(name: str, description: str, figure: Figure) -> Picture:
    return Picture(name, description, figure, to_svg(figure, name))


def _drawn(analysis: Analysis, curves: Curves) -> Curves:
    return thinned(curves, drawn_points(analysis))


def _learning(analysis: Analysis) -> list[Picture]:
    metric, styles = analysis.settings.metric, styles_of(analysis)
    targets = {
        comparison.arm: comparison.target.value
        for comparison in analysis.comparisons
        if comparison.baseline is None and comparison.target.value == comparison.target.value
    }
    pictures = []
    for panel in figures.learning_panels(metric) + figures.agreement_panels(agreement_names(analysis.runs)):
        curves = _drawn(analysis, panel.curves(analysis.runs))
        if curves:
            shown = targets if panel.metric == metric else {}
            figure = figures.learning_figure(panel.title, panel.metric, curves, styles, shown)
            pictures.append(_picture(panel.name, f"{panel.title} against policy updates", figure))
    return pictures


def _paired(analysis: Analysis) -> list[Picture]:
    curves, styles = _drawn(analysis, analysis.curves), styles_of(analysis)
    pictures = []
    for comparison in analysis.comparisons:
        if comparison.baseline is not None and comparison.paired_seeds:
            arms = (comparison.arm, comparison.baseline)
            figure = figures.difference_figure(
                *arms, analysis.settings.metric, curves, comparison.paired_seeds, styles[comparison.arm]
            )
            name = f"paired_difference_{len(pictures) + 1}"
            pictures.append(_picture(name, f"{arms[0]} minus {arms[1]}, against policy updates", figure))
    return pictures


def _against_kl(analysis: Analysis) -> list[Picture]:
    metric = analysis.settings.metric
    kl = curves_of(analysis.runs, beside(metric, metric_keys.KL))
    if not kl:
        return []
    figure = figures.kl_figure(metric, _drawn(analysis, analysis.curves), _drawn(analysis, kl), styles_of(analysis))
    return [_picture("reward_against_kl", "Reward against KL", figure)]


def _grids(analysis: Analysis) -> list[Picture]:
    """Draw the area of every point, where arms have `values` and a point could be measured."""
    found = analysis.sensitivity
    if found is None or all(score.problem is not None for score in found.scores.values()):
        return []
    description = "Area under the curve at every point of the grids, a panel an arm"
    return [_picture("sensitivity", description, figures.sensitivity_figure(found))]


def _tasks(analysis: Analysis) -> list[Picture]:
    """Draw the performance profiles of methods over several tasks."""
    if analysis.tasks is None or not analysis.tasks.methods:
        return []
    figure = profiles_figure(profiles(analysis.tasks))
    return [_picture("performance_profiles", "Share of runs above a score, for each method", figure)]


def _online(analysis: Analysis) -> list[Picture]:
    """Draw what a reward model that learned meanwhile was worth and what it cost, against labels."""
    metric = analysis.settings.metric
    frozen = {arm.arm: arm.final.values for arm in analysis.online if arm.labels.point == 0}
    pictures = []
    for panel in figures.online_panels(metric) if analysis.online else ():
        labels = curves_of(analysis.runs, beside(panel.metric, metric_keys.ONLINE_LABELS))
        curves = _drawn(analysis, against_labels(panel.curves(analysis.runs), labels))
        levels = frozen if panel.metric == metric else {}
        if curves or levels:
            figure = figures.labels_figure(panel, curves, styles_of(analysis), levels)
            pictures.append(_picture(panel.name, f"{panel.title} against labels used", figure))
    return pictures
