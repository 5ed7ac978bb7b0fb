"""The slopes of experiments/reward-variance."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "experiments" / "reward-variance"
slopes = runpy.run_path(str(FOLDER / "slopes.py"))
GOLD = slopes["GOLD"]


def table(exponent, arms, seeds=(1, 2, 3)):
    """Runs whose gold reward rises by 0.1 in 20 * variance^exponent steps."""
    rows = []
    for i, arm in enumerate(arms):
        for seed in seeds:
            variance = 0.05 * 2.0**i * seed
            steps = 20 * variance**exponent
            for step in range(0, 201, 5):
                rows += [(arm, seed, GOLD, step, 0.3 + 0.1 * step / steps)]
            rows += [(arm, seed, slopes["VARIANCE"], 0, variance), (arm, seed, slopes["VARIANCE"], 1, 9.0)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "metric", "step", "value"])
    return frame.astype({"seed": "Int64"}).assign(run="", wall_time=0.0)


@pytest.mark.parametrize("exponent", [-0.5, -1 / 3, 0.0, 0.25])
def test_a_planted_slope_is_found(exponent):
    arms = slopes["LINES"]["sgd, advantages not divided"]
    found = slopes["measured"](table(exponent, arms))
    estimate, lacking = slopes["slope"](found, arms)
    assert lacking == 0 and len(estimate.values) == 3
    assert estimate.values == pytest.approx([exponent] * 3, abs=1e-9)


def test_a_seed_that_never_gains_has_no_line_and_is_counted():
    arms = slopes["LINES"]["sgd, not divided, other reward models"]
    runs = table(-0.5, arms)
    runs.loc[(runs["arm"] == arms[-1]) & (runs["seed"] == 2) & (runs["metric"] == GOLD), "value"] = 0.3
    found = slopes["measured"](runs)
    assert np.isinf(found.set_index(["arm", "seed"]).loc[(arms[-1], 2), "steps"])
    estimate, lacking = slopes["slope"](found, arms)
    assert (len(estimate.values), lacking) == (2, 1)


def test_every_arm_of_the_study_is_on_a_line_and_the_picture_is_drawn():
    arms = yaml.safe_load((FOLDER / "study.yaml").read_text())["arms"]
    assert set(arms) == {arm for line in slopes["LINES"].values() for arm in line}
    found = slopes["measured"](table(-0.5, list(arms)))
    axes = slopes["draw"](found).axes[0]
    assert len(axes.lines) == len(slopes["LINES"]) + 1
