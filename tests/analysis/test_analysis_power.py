"""`grpovi power`: what seeds can see, against scipy's noncentral t and a simulation."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from scipy.integrate import trapezoid
from synthetic_runs import STEPS, ramp, write_study

from analysis import ReportError, print_power
from grpovi_lightning.cli import main

ARRIVALS = {1: (30, 22), 2: (34, 28), 3: (26, 22), 4: (31, 29)}
"""seed -> the steps at which the baseline and the arm arrive at 1, each straight from 0."""


def at_target(arrival: float) -> float:
    """The step at which the line through the evaluations passes nine tenths."""
    curve = ramp(arrival)
    return float(np.interp(0.9, list(curve.values()), list(curve)))


def write(root: Path, arrivals: Mapping[int, tuple[float, float]] = ARRIVALS) -> Path:
    arms = {
        arm: {seed: ramp(both[place]) for seed, both in arrivals.items()}
        for place, arm in enumerate(("grpo", "grpovi"))
    }
    return write_study(root, arms, {"grpovi": "grpo"})


def seen(effect: float, n: int, level: float) -> float:
    """The power of the two-sided t test, by scipy."""
    threshold, shift = stats.t.ppf(1 - level / 2, n - 1), effect * math.sqrt(n)
    return stats.nct.sf(threshold, n - 1, shift) + stats.nct.cdf(-threshold, n - 1, shift)


def test_the_spread_is_that_of_the_pairs_and_the_level_that_of_two_tests(tmp_path: Path):
    (power,) = print_power(write(tmp_path / "pilot"), Console(file=(tmp_path / "out").open("w")))
    assert (power.arm, power.baseline, power.n_seeds) == ("grpovi", "grpo", 4)
    assert power.level == pytest.approx(0.025)
    areas = [trapezoid(list(ramp(b).values())) - trapezoid(list(ramp(a).values())) for a, b in ARRIVALS.values()]
    assert power.area_sd == pytest.approx(np.std(areas, ddof=1) / (len(STEPS) - 1))
    ratios = [math.log(at_target(a) / at_target(b)) for a, b in ARRIVALS.values()]
    assert power.steps_sd == pytest.approx(np.std(ratios, ddof=1))
    assert seen(power.area / power.area_sd, 4, 0.025) == pytest.approx(0.8, abs=1e-3)
    assert seen(math.log(power.speedup) / power.steps_sd, 4, 0.025) == pytest.approx(0.8, abs=1e-3)
    assert power.rise == pytest.approx(1.0)


def test_the_seeds_that_it_asks_for_see_a_planted_difference_four_times_in_five(tmp_path: Path, capsys):
    assert main(["power", str(write(tmp_path / "pilot"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line.split("rise")[1].split() for line in lines if ": 2 % of the rise" in line)
    share, needed = float(row[0]) / 100, int(row[-1])
    (power,) = print_power(tmp_path / "pilot", Console(file=(tmp_path / "out").open("w")))
    effect = 0.02 * power.rise / power.area_sd
    assert share == pytest.approx(seen(effect, 4, 0.025), abs=1e-3)
    studies = np.random.default_rng(0).normal(effect, 1.0, size=(4000, needed))
    found = (stats.ttest_1samp(studies, 0.0, axis=1).pvalue <= 0.025).mean()
    fewer = (stats.ttest_1samp(studies[:, 1:], 0.0, axis=1).pvalue <= 0.025).mean()
    assert fewer < 0.82 and found > 0.78


def test_more_spread_sees_less(tmp_path: Path):
    wide = {seed: (a, b + 4 * (-1) ** seed) for seed, (a, b) in ARRIVALS.items()}
    one, two = (
        print_power(write(tmp_path / name, seeds), Console(file=(tmp_path / "out").open("w")))[0]
        for name, seeds in (("narrow", ARRIVALS), ("wide", wide))
    )
    assert two.area > one.area and two.speedup > one.speedup


def test_two_seeds_are_refused_in_one_line(tmp_path: Path, capsys):
    root = write(tmp_path / "pilot", {1: (30, 25), 2: (30, 22)})
    with pytest.raises(ReportError, match="no comparison has 3 seeds that count in both arms; run a pilot"):
        print_power(root)
    assert main(["power", str(root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no comparison has 3 seeds" in line
