"""benchmarks/one_pass.py: what it learns, counts and refuses. How fast anything is stays untested here."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.preference_reference import newton

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "one_pass.py"
REFITS = ("warm", "cold", "loose")
COLUMNS = "arm,setting,seed,samples,seconds,state_bytes,cross_entropy,accuracy"


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder in which the whole script ran once, what it printed, and its table."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, str(SCRIPT), "--quick", "--seed", "3"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (table,) = folder.glob("runs/benchmarks/one_pass_*.csv")
    return folder, done.stdout, table


@pytest.fixture
def synthetic(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.syspath_prepend(str(ROOT))  # tests/analysis must not stand in for the package
    import one_pass_synthetic

    return one_pass_synthetic


@pytest.fixture
def script(synthetic, monkeypatch, tmp_path):
    """The script as a module, in an empty folder, with sizes that take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # undone afterwards, also what the script sets
    spec = importlib.util.spec_from_file_location("benchmark_of_one_pass", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "QUICK", synthetic.Sizes(dim=3, pairs=64, held_out=20, n_seeds=2))
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def test_the_table_has_one_row_an_arm_a_seed_and_a_round(quick, synthetic):
    assert quick[2].read_text().splitlines()[0] == COLUMNS
    rows = read(quick[2])
    arms = [(arm.name, arm.setting) for arm in synthetic.arms()]
    assert len(set(arms)) == len(arms) == 3 + 3 + 3 + 1 + 1 + 6 + 6
    rounds = [str(32 * (i + 1)) for i in range(synthetic.QUICK.pairs // 32)]
    expected = [(*arm, seed, samples) for arm in arms for seed in ("3", "4") for samples in rounds]
    assert [(row["arm"], row["setting"], row["seed"], row["samples"]) for row in rows] == expected
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_the_refit_scores_as_the_maximum_that_newtons_method_finds(quick, synthetic):
    task = synthetic.problem(synthetic.QUICK, 3)
    theta = newton(task.z.numpy(), task.y.numpy(), 10.0)
    margins, labels = task.held_out_z.numpy() @ theta, task.held_out_y.numpy()
    loss = np.log1p(np.exp(-(2 * labels - 1) * margins)).mean()
    accuracy = ((margins > 0) == (labels == 1)).mean()
    found = [row for row in read(quick[2]) if (row["arm"], row["setting"]) == ("MLE refit, warm", "lam 10")]
    last = next(row for row in found if row["seed"] == "3" and row["samples"] == str(synthetic.QUICK.pairs))
    assert float(last["cross_entropy"]) == pytest.approx(loss, abs=1e-6)
    assert float(last["accuracy"]) == pytest.approx(accuracy)


def test_the_loose_refit_scores_nearly_as_the_tight_one_and_its_ratio_is_printed_beside_it(quick):
    def losses(arm):
        found = [row for row in read(quick[2]) if (row["arm"], row["setting"]) == (arm, "lam 1")]
        return np.array([float(row["cross_entropy"]) for row in found]).reshape(2, -1)

    change = np.abs(losses("MLE refit, loose") - losses("MLE refit, warm"))
    assert 1e-7 < change.max() < 0.01
    printed = " ".join(quick[1].split())
    assert "a refit ends at a gradient of 1e-09 of its bound, a loose one at 1e-04, which changes" in printed
    assert f"at most {change[:, -1].max():.1e} after all rounds, and {change.max():.1e} after any." in printed
    ratios = [line.split() for line in quick[1].splitlines() if line.strip().startswith("lam ")]
    assert [line.count("±") for line in ratios] == [4, 5, 4]


def test_the_state_of_one_pass_stays_as_it_is_and_that_of_the_refit_grows_by_a_pair_and_its_label(quick):
    rows = [row for row in read(quick[2]) if row["seed"] == "3"]
    one_pass = {row["state_bytes"] for row in rows if row["arm"] in ("one-pass OMD", "implicit OMD")}
    assert {float(value) for value in one_pass} == {8 * (12 + 12 * 12)}
    for row in rows:
        if row["arm"] == "MLE refit, cold":
            assert float(row["state_bytes"]) == 8 * (12 + 13 * int(row["samples"]))


def test_the_machine_and_the_places_of_table_and_picture_are_printed(quick):
    folder, printed, table = quick
    assert printed.startswith("processor: ") and "threads: 1" in printed
    written = [table.relative_to(folder), table.relative_to(folder).with_suffix(".svg")]
    assert printed.splitlines()[-2:] == [f"written: {path}" for path in written]
    assert "promised at the full size" in " ".join(printed.split())


def test_the_picture_has_four_panels_and_the_arms(quick):
    picture = quick[2].with_suffix(".svg").read_text()
    for text in ("Held-out cross-entropy", "Held-out pair accuracy", "Time of a round", "State kept between rounds"):
        assert text in picture
    assert "mathdefault" not in picture
    for text in ("one-pass OMD, lam 1", "SGD, constant, rate ", *(f"MLE refit, {kind}, lam 1" for kind in REFITS)):
        assert text in picture


def test_features_have_length_1_and_labels_follow_the_reward(synthetic):
    task = synthetic.problem(synthetic.Sizes(dim=40, pairs=20_000, held_out=10, n_seeds=1), 0)
    assert task.theta.norm().item() == pytest.approx(23.0)
    # Two independent unit vectors with mean 0 lie sqrt(2) apart, in the mean of squares.
    assert task.z.square().sum(dim=1).mean().item() == pytest.approx(2.0, abs=0.02)
    drawn = np.random.default_rng(0).standard_normal((20_000, 40)) / np.arange(1, 41) ** 0.5
    unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    np.testing.assert_allclose(task.z.var(dim=0), 2 * unit.var(axis=0), rtol=0.08)
    p = torch.sigmoid(task.z @ task.theta)
    assert (task.y - p).mean().item() == pytest.approx(0.0, abs=0.01)
    assert ((task.y - p) * (p - 0.5)).mean().item() == pytest.approx(0.0, abs=0.01)
    again = synthetic.problem(synthetic.Sizes(dim=40, pairs=20_000, held_out=10, n_seeds=1), 0)
    assert torch.equal(task.z, again.z) and torch.equal(task.y, again.y)


def track(synthetic, arm, setting, seconds, losses):
    seconds, losses = np.array(seconds), np.array(losses)
    samples = 32 * np.arange(1, seconds.shape[1] + 1)
    return synthetic.Track(synthetic.Arm(arm, setting, None), samples, seconds, 0 * seconds, losses, 0 * losses)


def test_the_time_of_a_round_is_the_median_of_the_last_ten_that_end_in_time(synthetic):
    seconds = np.arange(20.0)[None]  # round i, of 0 to 19, ends at 32 (i + 1)
    found = track(synthetic, "a", "b", seconds, seconds)
    assert found.round_seconds(32 * 15 + 5).tolist() == [9.5]  # rounds 5 to 14
    assert found.round_seconds(96).tolist() == [1.0]


def test_the_best_setting_has_the_lowest_mean_at_the_end(synthetic):
    grid = [
        track(synthetic, "SGD", "low early", [[1, 1], [1, 1]], [[0.1, 0.6], [0.1, 0.6]]),
        track(synthetic, "SGD", "low once", [[1, 1], [1, 1]], [[0.9, 0.4], [0.9, 0.9]]),
        track(synthetic, "SGD", "low mean", [[1, 1], [1, 1]], [[0.9, 0.5], [0.9, 0.6]]),
        track(synthetic, "other", "lowest", [[1, 1], [1, 1]], [[0.0, 0.0], [0.0, 0.0]]),
    ]
    assert synthetic.best(grid, "SGD").arm.setting == "low mean"


def test_a_rerun_replaces_its_own_table_and_picture_and_says_so(script, capsys):
    for verb in ("written", "replaced"):
        assert script.main(["--quick", "--output", "new/out.csv"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[-2:] == [f"{verb}: new/out.csv", f"{verb}: new/out.svg"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "other.csv"], "--output: got other.csv, which is there and no table of this benchmark"),
        (["--output", "drawn.csv"], "--output: got drawn.svg, which is there and no picture of this benchmark"),
        (["--output", "other.txt"], "--output: got other.txt, expected a name that ends in .csv"),
        (["--output", "other.csv/out.csv"], "other.csv"),
        (["--seed", "-1"], "--seed: got -1, expected at least 0"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(script, capsys, arguments, complaint):
    Path("other.csv").write_text("group,reward\na,1\n")
    Path("drawn.svg").write_text("<svg/>")
    assert script.main(["--quick", *arguments]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("one_pass.py: error: ") and complaint in line
    assert printed.out == ""
    assert Path("other.csv").read_text() == "group,reward\na,1\n"


def test_a_refit_that_does_not_converge_is_one_line_and_exit_status_1(script, capsys, monkeypatch):
    from grpovi_lightning.rewards.online import maximum_likelihood

    monkeypatch.setattr(maximum_likelihood, "MAX_ITERATIONS", 1)
    assert script.main(["--quick", "--output", "out.csv"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("one_pass.py: error: fit on 32 pairs: got a gradient of ")
    assert not Path("out.csv").exists()
