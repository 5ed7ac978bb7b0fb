"""The report of a study: one page that needs nothing else, its pictures, and the table as CSV."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from analysis import figures, wording
from analysis.curves import beside, curves_of
from analysis.diagnoses import by_arm, diagnose_runs, lacking, told_live
from analysis.diagnostics import (
    adjustment_means,
    config_differences,
    environment,
    recorded_by_seed,
    rises,
    spread_key,
)
from analysis.efficiency import Comparison, table_of
from analysis.online import WINDOW_STEPS, against_labels, agreement_names, online_table
from analysis.settings import Settings
from analysis.study import Analysis, analyse
from analysis.style import ArmStyle, arm_styles
from analysis.svg import inline, to_svg
from analysis.tables import rows_where
from analysis.tuned import sentences_of
from grpovi_lightning import metric_keys
from grpovi_lightning.run_record.layout import REPORT_FOLDER

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Picture:
    """A picture of the report: file name without ending, what it shows, the SVG document."""

    name: str
    description: str
    svg: str

    @property
    def inline(self) -> Markup:
        """Markup of the picture as part of the page."""
        return inline(self.svg, self.name, self.description)


def write_report(
    study_dir: str | Path,
    *,
    metric: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> Path:
    """Write `report/index.html`, `report/efficiency.csv` and `report/*.svg` below the study.

    Where a reward model learned during training, also `report/online.csv`: one row an arm, `arm`, `n_seeds`, `observed`
    and the quantities that `analysis.online.OnlineArm` describes, each with its 95 % interval (`_low`, `_high`)
    and the number of seeds that measured it (`_seeds`); empty where there is none.

    Where points were chosen on tuning seeds, also `report/tuned.csv`, as `analysis.TunedComparison.table` describes it.

    The same runs give the same bytes. Nothing is written before everything has been computed.

    Args:
        study_dir: A study (with study.yaml), or a folder of bare runs.
        metric: The tag to compare, instead of study.yaml's or the default; higher is better.
        baseline: The arm that all others are compared with, instead of what study.yaml says.
        target: The value to reach, in units of the metric, instead of a share of the baseline's rise.

    Returns:
        The path of `index.html`.

    Raises:
        ReportError: The folder is missing or holds no runs, study.yaml cannot be used, or the metric or the
            baseline does not exist.
    """
    return write_analysis(analyse(study_dir, metric=metric, baseline=baseline, target=target))


def write_analysis(analysis: Analysis) -> Path:
    """Write the report of what has been computed; return the path of `index.html`."""
    pictures = draw(analysis)
    page = render(analysis, pictures)
    folder = analysis.path / REPORT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for picture in [picture for section in pictures.values() for picture in section]:
        (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
    table_of(analysis.comparisons).to_csv(folder / "efficiency.csv", index=False, lineterminator="\n")
    if analysis.online:
        online_table(analysis.online).to_csv(folder / "online.csv", index=False, lineterminator="\n")
    if analysis.tuned:
        analysis.tuned.table().to_csv(folder / "tuned.csv", index=False, lineterminator="\n")
    index = folder / "index.html"
    index.write_text(page, encoding="utf-8")
    return index


def styles_of(analysis: Analysis) -> dict[str, ArmStyle]:
    """Choose how each arm is drawn; the adjustment's name stands for the algorithm."""
    return arm_styles(analysis.arms, analysis.settings.baselines, adjustments_of(analysis))


def adjustments_of(analysis: Analysis) -> dict[str, str]:
    """Return the class of each arm's adjustment, for the arms that recorded one."""
    names = zip(analysis.status["arm"], analysis.status["adjustment"], strict=True)
    return {arm: name for arm, name in names if name is not None}


def draw(analysis: Analysis) -> dict[str, list[Picture]]:
    """Draw all pictures, by section: `learning`, `paired`, `kl`, `online`, `grids`; none for what no run logged."""
    styles = styles_of(analysis)
    metric = analysis.settings.metric
    if not analysis.curves:
        return {"learning": [], "paired": [], "kl": [], "online": [], "grids": draw_grids(analysis)}
    targets = {
        comparison.arm: comparison.target.value
        for comparison in analysis.comparisons
        if comparison.baseline is None and comparison.target.value == comparison.target.value
    }
    learning = []
    for panel in figures.learning_panels(metric) + figures.agreement_panels(agreement_names(analysis.runs)):
        curves = panel.curves(analysis.runs)
        if curves:
            shown = targets if panel.metric == metric else {}
            figure = figures.learning_figure(panel.title, panel.metric, curves, styles, shown)
            learning.append(Picture(panel.name, f"{panel.title} against policy updates", to_svg(figure, panel.name)))
    paired = []
    for comparison in analysis.comparisons:
        if comparison.baseline is not None and comparison.paired_seeds:
            name = f"paired_difference_{len(paired) + 1}"
            arms = (comparison.arm, comparison.baseline)
            style = styles[comparison.arm]
            figure = figures.difference_figure(*arms, metric, analysis.curves, comparison.paired_seeds, style)
            paired.append(Picture(name, f"{arms[0]} minus {arms[1]}, against policy updates", to_svg(figure, name)))
    kl = curves_of(analysis.runs, beside(metric, metric_keys.KL))
    pictures = []
    if kl:
        figure = figures.kl_figure(metric, analysis.curves, kl, styles)
        pictures.append(Picture("reward_against_kl", "Reward against KL", to_svg(figure, "reward_against_kl")))
    pictures_of = {"learning": learning, "paired": paired, "kl": pictures, "online": draw_online(analysis)}
    return pictures_of | {"grids": draw_grids(analysis)}


def draw_grids(analysis: Analysis) -> list[Picture]:
    """Draw the area of every point, where arms have `values` and a point could be measured."""
    found = analysis.sensitivity
    if found is None or all(score.problem is not None for score in found.scores.values()):
        return []
    svg = to_svg(figures.sensitivity_figure(found), "sensitivity")
    return [Picture("sensitivity", "Area under the curve at every point of the grids, a panel an arm", svg)]


def draw_online(analysis: Analysis) -> list[Picture]:
    """Draw what a reward model that learned meanwhile was worth and what it cost, against labels."""
    metric = analysis.settings.metric
    frozen = {arm.arm: arm.final.values for arm in analysis.online if arm.labels.point == 0}
    pictures = []
    for panel in figures.online_panels(metric) if analysis.online else ():
        labels = curves_of(analysis.runs, beside(panel.metric, metric_keys.ONLINE_LABELS))
        curves = against_labels(panel.curves(analysis.runs), labels)
        levels = frozen if panel.metric == metric else {}
        if curves or levels:
            figure = figures.labels_figure(panel, curves, styles_of(analysis), levels)
            pictures.append(Picture(panel.name, f"{panel.title} against labels used", to_svg(figure, panel.name)))
    return pictures


def render(analysis: Analysis, pictures: Mapping[str, list[Picture]]) -> str:
    """Return the page. The template escapes every text that comes from outside."""
    drawn = {picture.name for picture in pictures["learning"]}
    status = analysis.status
    counted = rows_where(status, status["reason"].isna())
    found = diagnose_runs(analysis.runs, counted, analysis.path)
    adjustment = adjustment_means(analysis.runs).dropna(axis="columns", how="all").dropna(axis="index", how="all")
    class_names = {arm: name.split(".")[-1] for arm, name in adjustments_of(analysis).items()}
    return _template().render(
        analysis=analysis,
        settings=analysis.settings,
        pictures=pictures,
        styles=styles_of(analysis),
        band=figures.BAND,
        not_drawn=[
            panel.metric for panel in figures.learning_panels(analysis.settings.metric) if panel.name not in drawn
        ],
        agreement_drawn=any(panel.name in drawn for panel in figures.agreement_panels(agreement_names(analysis.runs))),
        agreement_steps=WINDOW_STEPS,
        kl_key=beside(analysis.settings.metric, metric_keys.KL),
        equal_kl=analysis.equal_kl,
        adjustment=[
            (arm, class_names.get(arm, wording.MISSING), list(adjustment.loc[arm]))
            for arm in analysis.arms
            if arm in adjustment.index
        ],
        adjustment_columns=list(adjustment.columns),
        rises=sorted(rises(analysis.runs, analysis.settings.metric), key=lambda rise: analysis.arms.index(rise.arm)),
        spread_key=spread_key(analysis.settings.metric),
        first_rollouts=recorded_by_seed(status, "first_rollout"),
        held_out_rows=recorded_by_seed(status, "held_out"),
        differences=differences(analysis),
        environment=environment(analysis.path, status),
        runs=[
            *(run | {"use": "yes"} for run in status.to_dict("records")),
            *(run | {"use": tuning_use(run, analysis.settings)} for run in analysis.tuning.to_dict("records")),
        ],
        n_compared=len(status),
        sensitivity=analysis.sensitivity,
        tuned=analysis.tuned,
        tuned_answers=sentences_of(analysis.tuned) if analysis.tuned else [],
        n_excluded=sum(reason is not None for reason in status["reason"]),
        diagnoses=by_arm(found),
        diagnosed=[each for each in found if each.problem is None],
        not_diagnosed=lacking(found),
        warnings=[
            (run, line)
            for run, lines in zip(status["run"], status["warnings"], strict=True)
            for line in lines
            if not told_live(line, run, found)
        ],
        n_tested=analysis.n_tested,
        seed_counts=sorted({len(comparison.seeds) for comparison in analysis.comparisons}),
    )


def _template() -> jinja2.Template:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": wording.number,
        "signed": lambda value: wording.number(value, signed=True),
        "interval": lambda value: wording.interval(value.low, value.high),
        "signed_interval": lambda value: wording.interval(value.low, value.high, signed=True),
        "whole": lambda value: wording.MISSING if value is None or value is pd.NA else str(value),
        "amount": wording.amount,
        "breakable": breakable,
        "change": wording.change,
        "percent": wording.percent,
        "reached": lambda row: wording.reached(row.n_reached, len(row.seeds), row.target.value),
    }
    return templates.get_template(TEMPLATE)


def breakable(name: str) -> Markup:
    """Let the name of a point break between its values rather than within one."""
    return Markup(re.sub(r"([@,])", r"\1<wbr>", str(escape(name))))


def tuning_use(run: Mapping[Any, Any], settings: Settings) -> str:
    """Say what a run that judges nothing is for."""
    of_grid = not pd.isna(run["seed"]) and run["seed"] in settings.grid_seeds
    return "for the choice of points" if of_grid else "no: its point was not chosen"


def differences(analysis: Analysis) -> list[tuple[Comparison, list[tuple[str, str, str]] | None]]:
    """Compare the configuration of each arm with its baseline's, on the first seed that counts in both."""
    counted = rows_where(analysis.status, analysis.status["reason"].isna())
    place = {(arm, seed): run for arm, seed, run in zip(counted["arm"], counted["seed"], counted["run"], strict=True)}
    found = []
    for comparison in analysis.comparisons:
        if comparison.baseline is not None and comparison.paired_seeds:
            seed = comparison.paired_seeds[0]
            folders = [analysis.path / place[arm, seed] for arm in (comparison.arm, comparison.baseline)]
            found.append((comparison, config_differences(*folders)))
    return found
