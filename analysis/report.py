"""The report of a study: one page that needs nothing else, and the files beside it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from analysis import figures, several_tasks, wording
from analysis.chart import chart_of, page_scripts
from analysis.curve_file import curve_file, outdated_curve_file
from analysis.curves import beside
from analysis.diagnoses import by_arm, diagnose_runs, lacking, told_live
from analysis.diagnostics import (
    adjustment_means,
    config_differences,
    environment,
    read_config,
    recorded_by_seed,
    rises,
    spread_key,
)
from analysis.efficiency import Comparison
from analysis.looks import looks_sentences
from analysis.online import WINDOW_STEPS, agreement_names
from analysis.pictures import Pictures, adjustments_of, draw, drawn_points, is_thinned, styles_of
from analysis.report_files import files_of
from analysis.settings import Settings
from analysis.settings_table import settings_table
from analysis.study import Analysis, analyse
from analysis.texts import last_evaluations, texts_of
from analysis.tuned import sentences_of
from grpovi_lightning import metric_keys
from grpovi_lightning.run_record.layout import REPORT_FOLDER, replace_file

TEMPLATE = "report.html.jinja"
INDEX = "index.html"


def write_report(
    study_dir: str | Path,
    *,
    metric: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> Path:
    """Write `report/index.html`, `report/efficiency.csv` and the pictures below the study.

    Each picture is written as SVG, PDF and PNG, and each main table as Markdown and as LaTeX (booktabs), too:
    `efficiency`, and where there are any `equal_kl`, `equal_cost`, `online` and `tuned`.

    Where a reward model learned during training, also `report/online.csv`: one row an arm, `arm`, `n_seeds`, `observed`
    and the quantities that `analysis.online.OnlineArm` describes, each with its 95 % interval (`_low`, `_high`)
    and the number of seeds that measured it (`_seeds`); empty where there is none.

    Where runs kept their completions, also `report/prompts.csv`: the mean reward of every held-out prompt at the end of
    training, as `analysis.prompt_rewards` describes it.

    Where points were chosen on tuning seeds, also `report/tuned.csv`, as `analysis.TunedComparison.table` describes it.

    Where arms have tasks, also `report/tasks.csv`, as `analysis.TasksComparison.table` describes it.

    For other programs, `report/curves.csv` has every value of every run (`analysis.curve_file`; of large studies it is
    `curves.parquet`), and `report/settings.csv` every setting of every arm (`analysis.settings_table`).

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
    last, unreadable = last_evaluations(analysis)
    configs = {run: read_config(analysis.path / run) for run in analysis.status["run"]}
    settings = settings_table(analysis, configs)
    page = render(
        analysis,
        pictures,
        texts=texts_of(analysis, last, unreadable),
        settings_table=settings,
        environment=environment(analysis.path, configs),
    )
    content = files_of(analysis, pictures, last, settings) | {INDEX: page}
    folder = analysis.path / REPORT_FOLDER
    for name, text in content.items():
        replace_file(folder / name, text)
    (folder / outdated_curve_file(analysis.all_runs)).unlink(missing_ok=True)
    return folder / INDEX


def render(analysis: Analysis, pictures: Pictures, **read: Any) -> str:
    """Return the page. The template escapes every text that comes from outside.

    `read`: what the sections show that were read from the runs' folders, not from their logs.
    """
    status = analysis.status
    return _template().render(
        analysis=analysis,
        settings=analysis.settings,
        pictures=pictures,
        equal_kl=analysis.equal_kl,
        equal_cost=analysis.equal_cost,
        sensitivity=analysis.sensitivity,
        tuned=analysis.tuned,
        tuned_answers=sentences_of(analysis.tuned) if analysis.tuned else [],
        tasks=analysis.tasks,
        tasks_answers=several_tasks.sentences_of(analysis.tasks) if analysis.tasks else [],
        rises=sorted(rises(analysis.runs, analysis.settings.metric), key=lambda rise: analysis.arms.index(rise.arm)),
        spread_key=spread_key(analysis.settings.metric),
        first_rollouts=recorded_by_seed(status, "first_rollout", analysis.settings.tasks),
        held_out_rows=recorded_by_seed(status, "held_out", analysis.settings.tasks),
        differences=differences(analysis),
        curve_file=curve_file(analysis.all_runs),
        runs=[
            *(run | {"use": "yes"} for run in status.to_dict("records")),
            *(run | {"use": tuning_use(run, analysis.settings)} for run in analysis.tuning.to_dict("records")),
        ],
        n_compared=len(status),
        n_excluded=len(status) - len(analysis.counted),
        n_tested=analysis.n_tested,
        looks=looks_sentences(analysis.settings),
        level=f"{100 * analysis.settings.level:.2g} %",
        seed_counts=sorted({len(comparison.seeds) for comparison in analysis.comparisons}),
        **_of_pictures(analysis, pictures),
        **_of_adjustments(analysis),
        **_of_diagnoses(analysis),
        **read,
    )


def _of_pictures(analysis: Analysis, pictures: Pictures) -> dict[str, Any]:
    drawn = {picture.name for picture in pictures["learning"]}
    metric, styles = analysis.settings.metric, styles_of(analysis)
    chart = chart_of(analysis.runs, metric, styles)
    return {
        "chart": chart,
        "scripts": page_scripts(chart=chart is not None),
        "drawn_points": drawn_points(analysis) if is_thinned(analysis) else None,
        "styles": styles,
        "band": figures.BAND,
        "not_drawn": [panel.metric for panel in figures.learning_panels(metric) if panel.name not in drawn],
        "agreement_drawn": any(
            panel.name in drawn for panel in figures.agreement_panels(agreement_names(analysis.runs))
        ),
        "agreement_steps": WINDOW_STEPS,
        "kl_key": beside(metric, metric_keys.KL),
    }


def _of_adjustments(analysis: Analysis) -> dict[str, Any]:
    means = adjustment_means(analysis.runs).dropna(axis="columns", how="all").dropna(axis="index", how="all")
    class_names = {arm: name.split(".")[-1] for arm, name in adjustments_of(analysis).items()}
    rows = [
        (arm, class_names.get(arm, wording.MISSING), list(means.loc[arm]))
        for arm in analysis.arms
        if arm in means.index
    ]
    return {"adjustment": rows, "adjustment_columns": list(means.columns)}


def _of_diagnoses(analysis: Analysis) -> dict[str, Any]:
    status, found = analysis.status, diagnose_runs(analysis.runs, analysis.counted, analysis.path)
    told = zip(status["run"], status["warnings"], strict=True)
    return {
        "diagnoses": by_arm(found),
        "diagnosed": [each for each in found if each.problem is None],
        "not_diagnosed": lacking(found),
        "warnings": [(run, line) for run, lines in told for line in lines if not told_live(line, run, found)],
    }


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
    counted = analysis.counted
    place = {(arm, seed): run for arm, seed, run in zip(counted["arm"], counted["seed"], counted["run"], strict=True)}
    found = []
    for comparison in analysis.comparisons:
        if comparison.baseline is not None and comparison.paired_seeds:
            seed = comparison.paired_seeds[0]
            folders = [analysis.path / place[arm, seed] for arm in (comparison.arm, comparison.baseline)]
            found.append((comparison, config_differences(*folders)))
    return found
