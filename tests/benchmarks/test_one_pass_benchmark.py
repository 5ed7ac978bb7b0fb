"""benchmarks/one_pass.py: what it learns, counts and refuses. How fast anything is stays untested here."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.preference_reference import newton
from PIL import Image


@pytest.fixture(scope="module")
def quick(tmp_path_factory, run_in):
    """What the whole script printed, its table by arm and setting, and the names of its files."""
    folder = tmp_path_factory.mktemp("benchmark")
    printed = run_in("one_pass", folder, "--quick", "--seed", "3")
    (table,) = folder.glob("runs/benchmarks/one_pass_*.csv")
    assert Image.open(table.with_suffix(".png")).size == (1170, 884)
    return printed, pd.read_csv(table), table.relative_to(folder)


@pytest.fixture
def script(scripts, monkeypatch, tmp_path):
    """The script as a module, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return scripts("one_pass")


def test_the_table_has_one_row_an_arm_a_seed_and_a_round(quick, script):
    rows = quick[1]
    arms = [(arm.name, arm.setting) for arm in script.arms()]
    assert len(set(arms)) == len(arms) == 3 + 3 + 3 + 1 + 1 + 6 + 6
    rounds = [32 * (i + 1) for i in range(script.QUICK.pairs // 32)]
    expected = [(*arm, seed, samples) for seed in (3, 4) for arm in arms for samples in rounds]
    assert list(rows[["arm", "setting", "seed", "samples"]].itertuples(index=False, name=None)) == expected
    assert (rows["seconds"] > 0).all()


def test_the_refit_scores_as_the_maximum_that_newtons_method_finds(quick, script):
    task = script.problem(script.QUICK, 3)
    theta = newton(task.z.numpy(), task.y.numpy(), 10.0)
    margins, labels = task.held_out_z.numpy() @ theta, task.held_out_y.numpy()
    loss = np.log1p(np.exp(-(2 * labels - 1) * margins)).mean()
    accuracy = ((margins > 0) == (labels == 1)).mean()
    rows = quick[1].set_index(["arm", "setting", "seed", "samples"])
    last = rows.loc[("MLE refit, warm", "lam 10", 3, script.QUICK.pairs)]
    assert last["cross_entropy"] == pytest.approx(loss, abs=1e-6) and last["accuracy"] == pytest.approx(accuracy)


def test_the_loose_refit_scores_nearly_as_the_tight_one_and_its_ratio_is_printed_beside_it(quick):
    def losses(arm):
        rows = quick[1][(quick[1]["arm"] == arm) & (quick[1]["setting"] == "lam 1")]
        return rows["cross_entropy"].to_numpy().reshape(2, -1)

    change = np.abs(losses("MLE refit, loose") - losses("MLE refit, warm"))
    assert 1e-7 < change.max() < 0.01
    printed = " ".join(quick[0].split())
    assert f"at most {change[:, -1].max():.1e} at the end, {change.max():.1e} before." in printed
    ratios = [line.split() for line in quick[0].splitlines() if line.strip().startswith("lam ")]
    assert [line.count("±") for line in ratios] == [4, 5, 4]


def test_the_state_of_one_pass_stays_as_it_is_and_that_of_the_refit_grows_by_a_pair_and_its_label(quick):
    rows = quick[1]
    one_pass = rows[rows["arm"].isin(["one-pass OMD", "implicit OMD"])]
    assert set(one_pass["state_bytes"]) == {8 * (12 + 12 * 12)}
    cold = rows[rows["arm"] == "MLE refit, cold"]
    assert (cold["state_bytes"] == 8 * (12 + 13 * cold["samples"])).all()


def test_the_machine_and_the_places_of_table_and_picture_are_printed(quick):
    printed, _, table = quick
    assert printed.startswith("processor: ") and "threads: 1" in printed
    assert printed.splitlines()[-2:] == [f"written: {table}", f"written: {table.with_suffix('.png')}"]


def test_features_have_length_1_and_labels_follow_the_reward(script):
    task = script.problem(script.Sizes(dim=40, pairs=20_000, held_out=10, n_seeds=1), 0)
    assert task.theta.norm().item() == pytest.approx(23.0)
    # Two independent unit vectors with mean 0 lie sqrt(2) apart, in the mean of squares.
    assert task.z.square().sum(dim=1).mean().item() == pytest.approx(2.0, abs=0.02)
    drawn = np.random.default_rng(0).standard_normal((20_000, 40)) / np.arange(1, 41) ** 0.5
    unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    np.testing.assert_allclose(task.z.var(dim=0), 2 * unit.var(axis=0), rtol=0.08)
    p = torch.sigmoid(task.z @ task.theta)
    assert (task.y - p).mean().item() == pytest.approx(0.0, abs=0.01)
    assert ((task.y - p) * (p - 0.5)).mean().item() == pytest.approx(0.0, abs=0.01)
    again = script.problem(script.Sizes(dim=40, pairs=20_000, held_out=10, n_seeds=1), 0)
    assert torch.equal(task.z, again.z) and torch.equal(task.y, again.y)


def track(script, setting, seconds, losses):
    """(arm, setting) -> rounds of one seed each row."""
    rows = [
        ("SGD", setting, seed, 32 * (i + 1), each, 0, losses[seed][i], 0.0)
        for seed, of_seed in enumerate(seconds)
        for i, each in enumerate(of_seed)
    ]
    return {("SGD", setting): pd.DataFrame(rows, columns=script.COLUMNS)}


def test_the_time_of_a_round_is_the_median_of_the_last_ten_that_end_in_time(script):
    seconds = [list(range(20))]  # round i, of 0 to 19, ends at 32 (i + 1)
    (rows,) = track(script, "a", seconds, seconds).values()
    found = script.round_seconds(rows)
    assert script.at(found, 32 * 15 + 5).tolist() == [9.5]  # rounds 5 to 14
    assert script.at(found, 96).tolist() == [1.0]


def test_the_best_setting_has_the_lowest_mean_at_the_end(script):
    once = [[1, 1], [1, 1]]
    grid = track(script, "low early", once, [[0.1, 0.6], [0.1, 0.6]])
    grid |= track(script, "low once", once, [[0.9, 0.4], [0.9, 0.9]])
    grid |= track(script, "low mean", once, [[0.9, 0.5], [0.9, 0.6]])
    lowest = track(script, "lowest", once, [[0.0, 0.0], [0.0, 0.0]])
    grid |= {("other", "lowest"): lowest["SGD", "lowest"]}
    assert script.best(grid, "SGD") == ("SGD", "low mean")


def test_a_mistake_is_one_line_before_anything_is_measured(script, mistake):
    assert mistake("one_pass", "--quick", "--seed", "-1") == "--seed: got -1, expected at least 0"


def test_a_refit_that_does_not_converge_is_one_line_and_exit_status_1(script, mistake, monkeypatch, tmp_path):
    from grpovi_lightning.rewards.online import maximum_likelihood

    monkeypatch.setattr(maximum_likelihood, "MAX_ITERATIONS", 1)
    assert mistake("one_pass", "--quick", status=1).startswith("fit on 32 pairs: got a gradient of ")
    assert not list(tmp_path.rglob("*.csv"))
