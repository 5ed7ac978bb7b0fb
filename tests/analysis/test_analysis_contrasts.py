"""Comparisons besides those with baselines: the same numbers as if the second arm were the baseline."""

from dataclasses import replace

import pytest
from synthetic_runs import line, write_study

from analysis import ReportError, write_report
from analysis.study import analyse

ARMS = {
    "one": {seed: line(0.0, 0.5 + 0.01 * seed) for seed in (1, 2, 3)},
    "two": {seed: line(0.0, 0.8 + 0.01 * seed) for seed in (1, 2, 3)},
    "three": {seed: line(0.0, 0.3 + 0.02 * seed) for seed in (1, 2, 3)},
}


def test_a_contrast_has_the_verdict_that_a_baseline_would_have_given_it(tmp_path):
    crossed = analyse(write_study(tmp_path / "a", ARMS, {"three": "one"}, contrasts=[["two", "one"]]))
    paired = analyse(write_study(tmp_path / "a", ARMS, {"two": "one"}))
    assert [(verdict.arm, verdict.baseline) for verdict in crossed.verdicts] == [("three", "one"), ("two", "one")]
    assert replace(crossed.verdicts[1], n_tested=2) == paired.verdicts[0]
    assert (crossed.n_tested, paired.n_tested) == (4, 2)
    assert crossed.verdicts[1].headline == "two is faster than one."


def test_an_arm_with_a_baseline_may_be_either_side_of_a_contrast_and_keeps_its_row(tmp_path):
    study = write_study(tmp_path / "a", ARMS, {"two": "one"}, contrasts=[["three", "two"], ["two", "three"]])
    found = analyse(study)
    plain = analyse(write_study(tmp_path / "a", ARMS, {"two": "one"}))
    assert found.comparisons == plain.comparisons
    assert [verdict.headline for verdict in found.verdicts[1:]] == [
        "three is slower than two: on all 3 seeds only two reached the target, three did not.",
        "two is faster than three.",
    ]


def test_the_page_shows_it_and_another_baseline_drops_it(tmp_path):
    study = write_study(tmp_path / "a", ARMS, {"three": "one"}, contrasts=[["two", "one"]])
    assert "two is faster than one." in write_report(study).read_text()
    assert [verdict.arm for verdict in analyse(study, baseline="three").verdicts] == ["one", "two"]


@pytest.mark.parametrize(
    ("contrasts", "said"),
    [
        ([["one"]], r"contrast \['one'\], expected two different arms"),
        ([["one", "one"]], r"contrast \['one', 'one'\], expected two different arms"),
        ([["one", "four"]], r"contrast \['one', 'four'\]: 'four' is no arm; expected of one, two, three"),
        ("one", "contrasts is text, expected a list"),
        ([["one", "two", "three"]], r"contrast \['one', 'two', 'three'\], expected two different arms"),
    ],
)
def test_what_is_no_pair_of_arms_is_refused(tmp_path, contrasts, said):
    study = write_study(tmp_path / "a", ARMS, {"two": "one"}, contrasts=contrasts)
    with pytest.raises(ReportError, match=rf"study\.yaml: report: {said}"):
        analyse(study)
