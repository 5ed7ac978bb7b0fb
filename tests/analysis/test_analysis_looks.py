"""Reports of studies whose seeds were added until the verdicts were decided."""

import math
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import GOLD, ramp, run_folder, write_run, write_study

from analysis import efficiency_table, load_runs, write_report
from analysis.errors import ReportError
from analysis.looks import undecided
from analysis.study import analyse
from grpovi_lightning.run_record.looks import LEAST_GROWTH, Looks, plan_looks, write_looks

BASELINE, SLIGHTLY = (60, 80, 62, 70, 66, 76), (58, 74, 57, 69, 60, 74)


def study(root: Path, looks: Looks | None, arm=SLIGHTLY) -> Path:
    curves = {name: {s: ramp(end) for s, end in enumerate(ends, 1)} for name, ends in (("vi", arm), ("grpo", BASELINE))}
    write_study(root, curves, {"vi": "grpo"})
    if looks is not None:
        write_looks(root, looks)
    return root


def test_the_levels_of_the_looks_add_up_to_that_of_one_test_and_looks_lie_apart():
    for first in range(1, 12):
        for most in range(first, 30):
            looks = plan_looks(range(most), first)
            assert sum(looks.shares) == pytest.approx(1.0) and min(looks.shares) > 0
            assert looks.counts[0] == first and looks.counts[-1] == most and len(looks.counts) <= 4
            assert list(looks.shares) == pytest.approx(np.diff([0, *((n / most) ** 3 for n in looks.counts)]))
            if most > 10 * first:
                assert min(b / a for a, b in zip(looks.counts, looks.counts[1:], strict=False)) > LEAST_GROWTH


def test_claims_at_the_looks_together_are_wrong_in_at_most_five_percent_of_null_studies():
    looks, rng = plan_looks(range(1, 21), 3), np.random.default_rng(0)
    values = rng.standard_normal((40_000, 20))
    p_values = [stats.ttest_1samp(values[:, :n], 0.0, axis=1).pvalue for n in looks.counts]
    wrong = [p <= 0.05 * share for p, share in zip(p_values, looks.shares, strict=True)]
    assert np.mean(np.any(wrong, axis=0)) == pytest.approx(0.047, abs=0.004)
    assert np.mean(np.any([p <= 0.05 for p in p_values], axis=0)) > 0.1  # which a fixed level would not keep


def test_the_report_is_that_of_the_last_look_with_its_level(tmp_path: Path):
    looks = plan_looks((1, 2, 3, 4, 5, 6), 3).after(()).after(())
    assert looks.counts == (3, 4, 6) and len(looks.seen) == 4
    found = analyse(study(tmp_path / "s", looks))
    (comparison,) = found.paired
    level = 0.05 * (4**3 - 3**3) / 6**3
    assert comparison.seeds == (1, 2, 3, 4)
    differences = np.array(comparison.paired.values)
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(1 - level)
    assert (comparison.paired.low, comparison.paired.high) == pytest.approx(tuple(expected))
    expected = stats.ttest_1samp(np.log(comparison.speedup.restricted.values), 0.0).confidence_interval(1 - level)
    assert np.log([comparison.speedup.estimate.low, comparison.speedup.estimate.high]) == pytest.approx(list(expected))
    for run in ("arms/vi/seed_5", "arms/grpo/seed_6"):
        assert set(found.status.loc[found.status["run"] == run, "reason"]) == {"waits for the look at 6 seeds"}
    table = efficiency_table(load_runs(tmp_path / "s"))
    assert table["n_seeds"].tolist() == [4, 4]
    assert table["paired_low"].max() == pytest.approx(comparison.paired.low)


def test_what_a_fixed_number_of_seeds_would_claim_is_not_claimed_at_a_look_that_may_spend_little(tmp_path: Path):
    fixed = analyse(study(tmp_path / "fixed", None))
    looks = replace(plan_looks(tuple(range(1, 25)), 6), made=((),))
    early = analyse(study(tmp_path / "early", looks))
    last = analyse(study(tmp_path / "last", plan_looks(tuple(range(1, 7)), 6).after(())))
    assert fixed.verdicts[0].headline == "vi is faster than grpo." and fixed.verdicts[0].decided
    assert last.verdicts == fixed.verdicts and last.paired == fixed.paired  # one look spends all
    assert "No difference" in early.verdicts[0].headline and not early.verdicts[0].decided
    assert early.paired[0].paired.point == fixed.paired[0].paired.point
    assert undecided(tmp_path / "early") == ["Is vi faster than grpo?"] and undecided(tmp_path / "last") == []


def test_a_run_that_was_left_out_of_a_look_does_not_count_when_it_has_finished_since(tmp_path: Path):
    looks = plan_looks((1, 2, 3, 4, 5, 6), 6).after(("arms/vi/seed_2",))
    found = analyse(study(tmp_path / "s", looks))
    assert found.paired[0].paired_seeds == (1, 3, 4, 5, 6)
    reasons = dict(zip(found.status["run"], found.status["reason"], strict=True))
    assert reasons["arms/vi/seed_2"] == "had not finished at the look at 6 seeds"


def test_before_the_first_look_nothing_counts(tmp_path: Path):
    found = analyse(study(tmp_path / "s", plan_looks((1, 2, 3, 4, 5, 6), 3)))
    assert found.verdicts[0].headline == "No verdict on vi against grpo: no seed counts in both arms."
    assert set(found.status["reason"]) == {"waits for the look at 3 seeds"}


def test_a_seed_that_no_look_was_planned_with_never_counts(tmp_path: Path):
    folder = study(tmp_path / "s", plan_looks((1, 2, 3), 3).after(()))
    reasons = analyse(folder).status.set_index("run")["reason"]
    assert reasons["arms/vi/seed_6"] == "no look was planned with its seed" and reasons["arms/vi/seed_3"] is None


def test_the_report_says_how_many_looks_were_planned_and_made_and_at_which_levels(tmp_path: Path):
    looks = plan_looks((1, 2, 3, 4, 5, 6), 3).after(()).after(("arms/vi/seed_2",))
    page = unescape(write_report(study(tmp_path / "s", looks)).read_text(encoding="utf-8"))
    assert "3 looks were planned, at 3, 4 and 6 seeds, with levels of their own (0.63 %, 0.86 %, 3.5 %)" in page
    assert "2 of 3 looks were made, the last at 4 seeds." in page and "says so at 0.86 %, corrected" in page
    assert "intervals are Student's t at 99.1 %" in page
    assert "Not finished at that look, and left out: arms/vi/seed_2." in page
    plain = write_report(study(tmp_path / "plain", None)).read_text(encoding="utf-8")
    assert "looks were planned" not in plain and "says so at 5 %, corrected" in plain


def test_a_record_of_looks_that_cannot_be_read_is_no_report_of_a_fixed_number_of_seeds(tmp_path: Path):
    folder = study(tmp_path / "s", None)
    (folder / "looks.json").write_text("{")
    with pytest.raises(ReportError, match=r"looks\.json cannot be read"):
        analyse(folder)


def test_what_is_given_as_finished_run_of_another_seed_has_no_number(tmp_path: Path):
    folder = study(tmp_path / "s", plan_looks((1, 2, 3), 3).after(()))
    write_run(run_folder(folder, "vi", 9), ramp(10), seed=None)
    found = analyse(folder)
    assert not math.isnan(found.paired[0].paired.point) and found.paired[0].paired_seeds == (1, 2, 3)
    assert found.settings.metric == GOLD
