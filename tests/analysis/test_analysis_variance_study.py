"""The table of experiments/variance: the report's differences, each cost corrected over the study."""

import runpy
from pathlib import Path

import pytest
from realistic_study import write_realistic_study

from analysis import efficiency_table, load_runs
from analysis.statistics import estimate_mean, holm
from analysis.study import analyse

script = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "variance" / "differences.py"))


def test_rows_are_the_differences_of_the_report_and_their_answers_are_corrected(tmp_path: Path):
    study = write_realistic_study(tmp_path / "study")
    rows = script["rows_of"](study)
    paired = efficiency_table(load_runs(study)).query("baseline != ''")
    assert [(row.arm, row.baseline) for row in rows] == list(zip(paired["arm"], paired["baseline"], strict=True))
    assert [row.steps.estimate.point for row in rows] == pytest.approx(paired["paired_diff"].tolist())
    pairs = analyse(study).paired
    family = [each.p for pair in pairs for each in (pair.speedup.restricted, estimate_mean(pair.paired.values))]
    assert [row.steps.p for row in rows] == pytest.approx(holm(family)[1::2], nan_ok=True)
    assert script["line"](rows[0]).startswith(
        f"| {rows[0].arm} | {rows[0].baseline} | {rows[0].steps.estimate.point:+.4f} ("
    )
    figure = script["draw"]([("one", rows), ("two", rows)])
    assert [len(axes.get_yticks()) for axes in figure.axes] == [len(rows)] * 2
