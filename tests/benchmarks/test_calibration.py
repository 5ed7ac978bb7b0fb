"""benchmarks/calibration.py: the noise that it finds again, the studies that it simulates, what it counts."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.integrate import trapezoid

STEPS = np.arange(0.0, 61.0, 10.0)


@pytest.fixture(scope="module")
def curves(scripts):
    return scripts("calibration_curves")


@pytest.fixture(scope="module")
def results(scripts):
    return scripts("calibration_results")


@pytest.fixture
def small(scripts, monkeypatch):
    """The script with one cell for each of two speed-ups and few seeds for the truth."""
    calibration = scripts("calibration")
    for name, value in (("SPEEDUPS", (1.0, 2.0)), ("SEEDS", (4,)), ("PLANS", ((2, 4),)), ("ENDLESS", 50)):
        monkeypatch.setattr(calibration, name, value)
    return calibration


@pytest.fixture
def noise(scripts):
    return scripts("calibration").RECORDED


def test_the_noise_of_simulated_runs_is_found_again(curves):
    planted = curves.Noise(0.3, 0.02, 0.5, 0.06, 0.03, 12.0, 0.3, 0.2, 0.004)
    study = curves.simulate(planted, STEPS, 400, 1.5, np.random.default_rng(0))
    found = curves.estimate_noise(study.curves())
    # The arm is 1.5 times as fast: the time constant is the geometric mean of both arms'.
    expected = replace(planted, rise_steps=12.0 / math.sqrt(1.5))
    for name in vars(planted):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=0.15), name


def test_without_noise_of_runs_the_faster_arm_is_where_its_baseline_will_be(curves, noise):
    quiet = replace(noise, rise_own_sd=0.0, log_steps_own_sd=0.0, evaluation_sd=0.0)
    study = curves.simulate(quiet, np.arange(0.0, 61.0), 3, 2.0, np.random.default_rng(0))
    np.testing.assert_allclose(study.values[0, :, :31], study.values[1, :, 0::2], rtol=1e-12)
    assert np.ptp(study.values[1, :, -1]) > 0, "seeds differ"


def test_runs_of_a_seed_start_at_one_value_and_evaluations_scatter_after_it(curves, noise):
    study = curves.simulate(noise, STEPS, 500, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(study.values[0, :, 0], study.values[1, :, 0])
    assert (study.values - study.expected)[..., 1:].std() == pytest.approx(noise.evaluation_sd, rel=0.05)
    table = study.table(7)
    assert table["arm"].unique().tolist() == ["arm 7", "baseline 7"] and len(table) == 2 * 500 * len(STEPS)
    last = table[(table["arm"] == "baseline 7") & (table["seed"] == 500) & (table["step"] == 60)]["value"]
    assert last.tolist() == [study.values[1, 499, -1]]


def test_coverage_and_claims_are_shares_of_the_studies_of_a_cell(results):
    ends = [(0.0, 1.0), (0.6, 1.0), (0.0, 0.4), (math.nan, math.nan)]
    values = [(0.0, 1.0, 0.5), (0.6, 1.0, 0.8), (0.0, 0.4, 0.2), (math.nan,) * 3]
    said = ["faster", "nothing", "slower", "faster"]
    rows = [
        (1.5, 3, study, said[study], 0.25, quantity, 0.5, values[study], *ends[study])
        for study in range(4)
        for quantity in ("steps", "area")
    ]
    studies = pd.DataFrame(rows, columns=results.STUDY_COLUMNS)
    coverage = results.coverage_table(studies)
    assert coverage["quantity"].tolist() == ["area", "steps"]
    assert coverage[["known", "missed"]].to_numpy().tolist() == [[0.75, 0.25]] * 2
    assert coverage["verdict"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert coverage["percentile"].tolist() == pytest.approx([1 / 3, 1 / 3]), "from three values it is their range"
    (claims,) = results.said_table(studies).to_dict("records")
    assert claims == {"speedup": 1.5, "seeds": 3, "faster": 0.5, "slower": 0.25} | dict.fromkeys(
        ("higher", "lower", "mixed"), 0.0
    ) | {"any": 0.75}


def test_a_small_run_writes_a_row_a_cell_and_quantity_and_the_picture(small, run_in, tmp_path):
    printed = run_in("calibration", tmp_path, "--studies", "3")
    file, growing = sorted(tmp_path.glob("runs/benchmarks/calibration_*.csv"), key=lambda path: len(path.name))
    table = pd.read_csv(file)
    assert table[["speedup", "seeds", "quantity"]].to_numpy().tolist() == [
        [speedup, 4, quantity] for speedup in (1.0, 2.0) for quantity in ("area", "steps")
    ]
    decided = pd.read_csv(growing)
    assert decided[["speedup", "first", "most"]].to_numpy().tolist() == [[1.0, 2, 4], [2.0, 2, 4]]
    assert decided["seeds"].between(2, 4).all()
    assert "evaluation_sd" in printed and "What headlines say" in printed
    assert Image.open(file.with_suffix(".png")).size == (1352, 468)


def test_where_seeds_are_added_a_study_stops_at_the_look_that_decides_it(small, noise, results):
    certain = replace(noise, rise_own_sd=0.0, log_steps_own_sd=1e-3, evaluation_sd=0.0)
    rows = small.until_decided(certain, 2.0, 3, 0)
    assert [row["study"] for row in rows] == [0, 1, 2] and {row["said"] for row in rows} == {"faster"}
    assert max(row["seeds"] for row in rows) < 4
    alike = replace(noise, rise_own_sd=0.0, log_steps_own_sd=0.3, evaluation_sd=0.0)
    rows = small.until_decided(alike, 1.0, 3, 0)
    assert {row["seeds"] for row in rows if row["said"] == "nothing"} == {4}
    (cell,) = results.decided_table(pd.DataFrame(rows)).to_dict("records")
    assert cell["any"] == np.mean([row["said"] != "nothing" for row in rows])
    assert cell["steps_covered"] == np.mean([row["steps_covered"] for row in rows])


def test_the_spread_of_runs_is_that_over_their_seeds(scripts, curves, noise):
    calibration = scripts("calibration")
    study = curves.simulate(noise, STEPS, 6, 1.0, np.random.default_rng(0))
    found = calibration.spreads_of(study.curves())
    areas = trapezoid(study.values, STEPS, axis=-1) / 60
    assert found["difference in area"] == pytest.approx(np.std(areas[0] - areas[1], ddof=1))
    assert found["final"] == pytest.approx(study.values[..., -3:].mean(axis=-1).std(axis=1, ddof=1).mean())


def test_the_same_seed_gives_the_same_studies_and_the_truth_is_that_of_endless_seeds(small, noise):
    one, again, other = (small.studies(noise, 2.0, 2, seed) for seed in (0, 0, 1))
    assert one == again and one != other and len(one) == 2 * 2
    quiet = replace(noise, rise_own_sd=0.0, rise_shared_sd=0.0, log_steps_own_sd=0.0, evaluation_sd=0.0, start_sd=0.0)
    quiet = replace(quiet, log_steps_shared_sd=0.0, rise_steps=15.0, rise=0.2)
    assert small.endless_study(noise, 1.0)["steps"] == pytest.approx(0.0, abs=0.3)
    assert small.endless_study(quiet, 1.0) == pytest.approx({"steps": 0.0, "area": 0.0})
    baseline, arm = (0.2 * -np.expm1(-STEPS / rise_steps) for rise_steps in (15.0, 7.5))
    goal = 0.9 * baseline[-3:].mean()  # of the last three evaluations; linear between evaluations
    steps = math.log(np.interp(goal, baseline, STEPS) / np.interp(goal, arm, STEPS))
    area = (trapezoid(arm, STEPS) - trapezoid(baseline, STEPS)) / 60
    assert small.endless_study(quiet, 2.0) == pytest.approx({"steps": steps, "area": area})


def test_simulated_runs_scatter_as_the_recorded_ones_do(scripts, noise):
    calibration = scripts("calibration")
    assert calibration.spreads(noise) == pytest.approx(calibration.RECORDED_SPREADS, rel=0.15)


def test_what_cannot_give_noise_is_refused_in_one_line(mistake, tmp_path):
    assert "no such folder" in mistake("calibration", "--noise-of", tmp_path / "none")
    assert mistake("calibration", "--studies", "1") == "--studies: got 1, expected at least 2"
