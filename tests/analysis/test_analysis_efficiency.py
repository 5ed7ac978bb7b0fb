import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from synthetic_runs import (
    GOLD,
    STEPS,
    frame,
    line,
    ramp,
    run_folder,
    write_run,
    write_status,
    write_study,
    write_study_yaml,
)

from analysis import ReportError, efficiency_table, load_runs, load_status
from analysis.efficiency import COLUMNS, compare
from analysis.selection import status_of
from analysis.settings import Settings

COLUMNS_OF_THE_DESIGN = (
    "arm, baseline, metric, n_seeds, n_excluded, target, n_reached, steps_to_target, steps_low, steps_high, "
    "tokens_to_target, seconds_to_target, speedup, speedup_low, speedup_high, final, final_low, final_high, auc, "
    "auc_low, auc_high, paired_diff, paired_low, paired_high, variance_ratio"
)

# A ramp that reaches 1 at step `at` crosses 0.9 at 0.9 * at, and its mean height over 100 steps is 1 - at / 200.
GRPO = {1: ramp(50), 2: ramp(40), 3: ramp(80)}
GRPOVI = {1: ramp(90), 2: ramp(80), 3: ramp(60)}
PAIR = {"grpovi": "grpo"}


def t_ends(name: str, values: Sequence[float]) -> dict[str, float]:
    """The ends of scipy's t interval under the names of their columns."""
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return {f"{name}_low": found.low, f"{name}_high": found.high}


def row(table: pd.DataFrame, arm: str) -> pd.Series:
    return table.set_index("arm").loc[arm]


def test_the_columns_are_those_of_the_design():
    table = efficiency_table(frame({"grpo": GRPO}), baselines={})
    assert list(table.columns) == COLUMNS
    assert ", ".join(COLUMNS) == COLUMNS_OF_THE_DESIGN


def test_ramps_with_known_crossings_give_the_numbers_worked_out_by_hand(tmp_path: Path):
    study = write_study(tmp_path, {"grpo": GRPO, "grpovi": GRPOVI}, PAIR)
    table = efficiency_table(load_runs(study))
    grpo, grpovi = row(table, "grpo"), row(table, "grpovi")
    assert table["arm"].tolist() == ["grpo", "grpovi"]
    assert (grpo["baseline"], grpovi["baseline"]) == ("", "grpo")
    assert grpo["target"] == grpovi["target"] == pytest.approx(0.9)  # 0 + 0.9 * (1 - 0)
    expected_grpo = {"steps_to_target": 45, "tokens_to_target": 4500}
    expected_grpo |= {
        "seconds_to_target": 90,
        "auc": (0.75 + 0.8 + 0.6) / 3,
        **t_ends("auc", [0.75, 0.8, 0.6]),
        "final": 1,
    }
    assert grpo[list(expected_grpo)].to_dict() == pytest.approx(expected_grpo, rel=1e-5)
    assert grpo[["speedup", "speedup_low", "paired_diff", "paired_high"]].isna().all()
    assert grpo[["steps_low", "steps_high"]].isna().all(), "three seeds"
    expected = {"steps_to_target": 72, "tokens_to_target": 7200}
    expected |= {"seconds_to_target": 144, "final": (1 + 1 + (8 / 9 + 2) / 3) / 3}
    expected |= {"speedup": (45 / 81 * 36 / 72 * 72 / 54) ** (1 / 3)}
    logs = t_ends("speedup", np.log([45 / 81, 36 / 72, 72 / 54]))
    expected |= {name: math.exp(end) for name, end in logs.items()}
    expected |= {"auc": (0.55 + 0.6 + 0.7) / 3, "paired_diff": -0.1, **t_ends("paired", [-0.2, -0.2, 0.1])}
    assert grpovi[list(expected)].to_dict() == pytest.approx(expected, rel=1e-5)
    assert (grpovi["n_seeds"], grpovi["n_excluded"], grpovi["n_reached"]) == (3, 0, 3)


def test_a_seed_that_did_not_reach_the_target_counts_as_infinite_and_is_not_dropped():
    arms = {"grpo": GRPO, "grpovi": {1: ramp(50), 2: line(0, 0.5), 3: line(0, 0.5)}}
    grpovi = row(efficiency_table(frame(arms), baselines=PAIR), "grpovi")
    assert (grpovi["n_seeds"], grpovi["n_reached"]) == (3, 1)
    assert grpovi[["steps_to_target", "tokens_to_target", "speedup", "speedup_low", "speedup_high"]].isna().all()
    six = {seed: ramp(10 * seed) for seed in range(1, 6)} | {6: line(0, 0.5)}
    table = efficiency_table(frame({"grpo": GRPO, "grpovi": six}), baselines=PAIR)
    assert row(table, "grpovi")["steps_to_target"] == pytest.approx((27 + 36) / 2)
    assert row(table, "grpovi")["steps_low"] == pytest.approx(9) and math.isnan(row(table, "grpovi")["steps_high"])


def test_a_baseline_that_did_not_rise_sets_no_target():
    table = efficiency_table(
        frame({"grpo": {1: line(1, 0.5), 2: line(1, 0.5)}, "grpovi": {1: line(1, 2)}}), baselines=PAIR
    )
    assert table["target"].isna().all() and table["steps_to_target"].isna().all()
    assert table["n_reached"].tolist() == [0, 0]
    assert row(table, "grpovi")["paired_diff"] == pytest.approx(1.5 - 0.75)


def test_an_explicit_target_and_another_fraction_move_the_target():
    runs = frame({"grpo": GRPO, "grpovi": GRPOVI})
    assert row(efficiency_table(runs, baselines=PAIR, target=0.5), "grpovi")["steps_to_target"] == pytest.approx(40)
    half = row(efficiency_table(runs, baselines=PAIR, target_fraction=0.5), "grpo")
    assert (half["target"], half["steps_to_target"]) == (pytest.approx(0.5), pytest.approx(25))
    with pytest.raises(ReportError, match=r"target_fraction must be above 0 and at most 1, got 1\.5"):
        efficiency_table(runs, target_fraction=1.5)


def test_a_target_that_was_met_before_training_has_no_ratio():
    table = efficiency_table(frame({"grpo": GRPO, "grpovi": GRPOVI}), baselines=PAIR, target=-1.0)
    assert row(table, "grpovi")["steps_to_target"] == 0 and math.isnan(row(table, "grpovi")["speedup"])


def test_one_seed_gives_numbers_without_intervals():
    table = efficiency_table(frame({"grpo": {1: ramp(50)}, "grpovi": {1: ramp(100)}}), baselines=PAIR)
    grpovi = row(table, "grpovi")
    assert (grpovi["speedup"], grpovi["paired_diff"]) == (pytest.approx(0.5), pytest.approx(-0.25))
    assert grpovi[[column for column in COLUMNS if column.endswith(("_low", "_high"))]].isna().all()


def test_only_seeds_in_both_arms_are_paired():
    arms = {"grpo": {1: ramp(50), 2: ramp(40)}, "grpovi": {2: ramp(80), 3: ramp(20)}}
    grpovi = row(efficiency_table(frame(arms), baselines=PAIR), "grpovi")
    assert grpovi["n_seeds"] == 2
    assert (grpovi["speedup"], grpovi["paired_diff"]) == (pytest.approx(0.5), pytest.approx(0.6 - 0.8))


def test_areas_are_taken_over_the_steps_that_both_runs_cover():
    long = ramp(50, range(0, 201, 10))
    grpovi = row(efficiency_table(frame({"grpo": {1: long}, "grpovi": {1: ramp(80)}}), baselines=PAIR), "grpovi")
    assert grpovi["auc"] == pytest.approx(0.6) and grpovi["paired_diff"] == pytest.approx(0.6 - 0.75)


def test_runs_that_do_not_count_are_counted_and_do_not_touch_the_numbers(tmp_path: Path):
    study = write_study(tmp_path, {"grpo": GRPO, "grpovi": GRPOVI}, PAIR)
    clean = efficiency_table(load_runs(study))
    write_study_yaml(study, ["grpo", "grpovi"], PAIR, [1, 2, 3, 4, 5, 6])
    write_run(run_folder(study, "grpovi", 4), ramp(10), seed=4, state="failed", error="out of memory")
    write_run(run_folder(study, "grpovi", 5), ramp(10) | {50: math.nan}, seed=5)
    write_run(run_folder(study, "grpo", 4), {0: 0.0}, seed=4)
    write_status(run_folder(study, "grpo", 5), seed=5)
    table = efficiency_table(load_runs(study))
    assert table["n_excluded"].tolist() == [3, 3], "seed 6 is planned and missing in both"
    numbers = [column for column in COLUMNS if column != "n_excluded"]
    pd.testing.assert_frame_equal(table[numbers], clean[numbers])
    pd.testing.assert_frame_equal(efficiency_table(load_runs(study), status=load_status(study)), table)


def test_an_arm_without_one_usable_run_has_a_row_of_empty_numbers(tmp_path: Path):
    study = write_study(tmp_path, {"grpo": GRPO, "grpovi": {}}, PAIR)
    for seed in (1, 2, 3):
        write_status(run_folder(study, "grpovi", seed), seed=seed, state="failed")
    grpovi = row(efficiency_table(load_runs(study)), "grpovi")
    assert (grpovi["n_seeds"], grpovi["n_excluded"], grpovi["n_reached"]) == (0, 3, 0)
    assert grpovi[["steps_to_target", "speedup", "final", "auc", "paired_diff"]].isna().all()
    assert grpovi["target"] == pytest.approx(0.9), "the baseline's"


def test_tokens_are_unknown_where_a_seed_did_not_log_them():
    table = efficiency_table(frame({"grpo": GRPO}), baselines={})
    assert math.isnan(row(table, "grpo")["tokens_to_target"]) and row(table, "grpo")[
        "steps_to_target"
    ] == pytest.approx(45)


def test_a_metric_that_no_run_logged_names_those_that_exist():
    with pytest.raises(ReportError, match=rf"no run logged 'eval/gold'; the metrics that exist are {GOLD}"):
        efficiency_table(frame({"grpo": GRPO}), metric="eval/gold")


def test_an_arm_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(ReportError, match="no such arm: grpo2; the arms are grpo, grpovi"):
        efficiency_table(frame({"grpo": GRPO, "grpovi": GRPOVI}), baselines={"grpovi": "grpo2"})


def test_without_further_words_bare_runs_are_compared_with_plain_grpo(tmp_path: Path):
    write_run(tmp_path / "grpo", ramp(50), seed=1)
    write_run(tmp_path / "grpovi", ramp(100), seed=1, adjustment="VarianceIncrease")
    assert row(efficiency_table(load_runs(tmp_path)), "grpovi")["speedup"] == pytest.approx(0.5)


def test_the_restricted_steps_of_a_pair_end_where_its_shorter_run_does():
    short, long = range(0, 61, 10), STEPS
    # The arm ends at step 60, on seed 2 before it arrives. The baseline crosses at 72, 72 and 45.
    arm = {1: ramp(50, short), 2: line(0, 0.5, short), 3: ramp(60, short)}
    baseline = {seed: ramp(end, long) for seed, end in ((1, 80), (2, 80), (3, 50))}
    runs = frame({"grpo": baseline, "grpovi": arm})
    (found,) = (
        one
        for one in compare(runs, status_of(runs).assign(reason=None), Settings("s", GOLD, "n", PAIR, target=0.9))
        if one.baseline
    )
    assert found.speedup.restricted.values == pytest.approx((60 / 45, 60 / 60, 45 / 54))
    assert (found.speedup.only_arm, found.speedup.neither, found.speedup.only_baseline) == (1, 1, 0)
    assert math.isnan(found.speedup.estimate.point)


CURVE = st.lists(st.floats(-1, 1, width=32), min_size=len(STEPS) - 1, max_size=len(STEPS) - 1).map(
    lambda values: dict(zip(STEPS, [0.0, *values], strict=True))
)
SEEDS = st.dictionaries(st.integers(1, 5), CURVE, min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(SEEDS)
def test_identical_arms_have_speedup_one_and_no_difference(seeds: dict):
    grpovi = row(efficiency_table(frame({"grpo": seeds, "grpovi": seeds}), baselines=PAIR), "grpovi")
    assert grpovi["paired_diff"] == 0
    if len(seeds) > 1:
        assert grpovi["paired_low"] == grpovi["paired_high"] == 0
    if grpovi["n_reached"] == len(seeds) and grpovi["target"] > 0:
        assert grpovi["speedup"] == 1


@settings(deadline=None, max_examples=40)
@given(SEEDS, SEEDS, st.integers(-8, 8))
def test_shifting_both_arms_shifts_values_and_nothing_else(grpo: dict, grpovi: dict, shift: int):
    def shifted(seeds: dict) -> dict:
        return {seed: {step: value + shift for step, value in curve.items()} for seed, curve in seeds.items()}

    before = efficiency_table(frame({"grpo": grpo, "grpovi": grpovi}), baselines=PAIR, target=0.25)
    moved = {"grpo": shifted(grpo), "grpovi": shifted(grpovi)}
    after = efficiency_table(frame(moved), baselines=PAIR, target=0.25 + shift)
    same = ["n_reached", "steps_to_target", "speedup", "speedup_low", "speedup_high", "paired_diff", "paired_low"]
    pd.testing.assert_frame_equal(before[same], after[same], rtol=1e-4, atol=1e-6)
    pd.testing.assert_series_equal(before["auc"] + shift, after["auc"], rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(SEEDS, SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(grpo: dict, grpovi: dict, random):
    runs = frame({"grpo": grpo, "grpovi": grpovi})
    order = list(range(len(runs)))
    random.shuffle(order)
    table = efficiency_table(runs, baselines=PAIR)
    pd.testing.assert_frame_equal(table, efficiency_table(runs.iloc[order], baselines=PAIR))


@settings(deadline=None, max_examples=25)
@given(SEEDS, SEEDS)
def test_every_interval_contains_its_mean(grpo: dict, grpovi: dict):
    table = efficiency_table(frame({"grpo": grpo, "grpovi": grpovi}), baselines=PAIR)
    for name, mean in (("final", "final"), ("auc", "auc"), ("paired", "paired_diff"), ("speedup", "speedup")):
        known = table[table[f"{name}_low"].notna()]
        assert (known[f"{name}_low"] <= known[mean] + 1e-12).all()
        assert (known[mean] <= known[f"{name}_high"] + 1e-12).all()


@settings(deadline=None, max_examples=25)
@given(SEEDS, SEEDS)
def test_exchanging_the_arms_inverts_the_speedup_and_the_difference(one: dict, two: dict):
    runs = frame({"one": one, "two": two})
    there = row(efficiency_table(runs, baselines={"two": "one"}, target=0.25), "two")
    back = row(efficiency_table(runs, baselines={"one": "two"}, target=0.25), "one")
    assert back["paired_diff"] == pytest.approx(-there["paired_diff"], nan_ok=True)
    assert back["paired_low"] == pytest.approx(-there["paired_high"], nan_ok=True)
    assert back["speedup"] == pytest.approx(1 / there["speedup"], nan_ok=True)
