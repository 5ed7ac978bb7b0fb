"""The miniature study from the command line: prepare stages, arms, seeds, report; then a killed run that goes on."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from analysis import load_completions
from analysis.loading import load_runs
from grpovi_lightning.cli import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
pytestmark = pytest.mark.slow
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    assert compare(output) == 0
    return output / "miniature"


def compare(output):
    return main(["compare", str(EXPERIMENTS / "miniature" / "study.yaml"), "--output", str(output)])


def statuses(study):
    return {
        str(path.parent.relative_to(study)): json.loads(path.read_text()) for path in study.glob("arms/*/*/status.json")
    }


def metrics(folder, seed):
    """Every scalar of one run but the clock's; of a step that was logged twice, the later value."""
    runs = load_runs(folder)
    kept = runs[(runs.seed == seed) & ~runs.metric.str.contains("time|seconds|throughput")]
    return {(row.metric, row.step): row.value for row in kept.itertuples()}


def test_every_run_finishes_and_arms_of_a_seed_begin_with_the_same_completions(study):
    found = statuses(study)
    assert len(found) == 6
    assert {status["state"] for status in found.values()} == {"finished"}
    for seed in (1, 2):
        first = {found[f"arms/{arm}/seed_{seed}"]["first_rollout"] for arm in ("grpo", "grpovi", "one-pass")}
        assert len(first) == 1 and None not in first


def test_the_report_has_a_row_for_each_arm_and_the_reward_models_accuracy(study):
    with (study / "report" / "efficiency.csv").open() as table:
        rows = {row["arm"]: row for row in csv.DictReader(table)}
    assert set(rows) == {"grpo", "grpovi", "one-pass"}
    assert (rows["grpovi"]["baseline"], rows["grpovi"]["n_seeds"]) == ("grpo", "2")
    assert rows["grpovi"]["metric"] == "eval/rewards/gold/mean"
    page = (study / "report" / "index.html").read_text()
    assert "pair accuracy" in page.lower()
    assert '<section id="online">' in page and "one-pass and grpo" in page  # its verdict is a contrast
    online = (study / "report" / "online.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in online] == ["arm", "grpo", "grpovi", "one-pass"]
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # the chart's library has addresses in its text
    assert not re.search(r"""(src|href)=["']https?://""", markup)


def test_held_out_curves_have_every_axis_and_the_adjustment_is_logged(study):
    found = metrics(study / "arms" / "grpovi", seed=1)
    for name in ("reward", "rewards/gold/mean", "kl", "entropy", "num_tokens", "completions/mean_length"):
        assert {step for metric, step in found if metric == f"eval/{name}"} == {0, 2, 4, 6}
    assert found["adjustment/variance_after", 0] >= found["adjustment/variance_before", 0]
    assert {step for metric, step in found if metric == "reward"} == set(range(6))


def test_sample_completions_are_in_the_event_files(study):
    events = EventAccumulator(str(study / "arms" / "grpovi" / "seed_1"), size_guidance={"tensors": 0})
    events.Reload()
    (text,) = events.Tensors("completions/text_summary")[0].tensor_proto.string_val
    assert b"| prompt | completion | reward | adjusted reward | advantage |" in text
    assert "eval/completions/text_summary" in events.Tags()["tensors"]


def test_a_finished_study_is_not_run_again(study):
    before = {name: (study / name / "status.json").stat().st_mtime_ns for name in statuses(study)}
    assert compare(study.parent) == 0
    assert {name: (study / name / "status.json").stat().st_mtime_ns for name in before} == before


FILES = {
    "grpovi": ["quickstart/grpo.yaml", "miniature/grpo.yaml", "quickstart/variance_increase.yaml"],
    "one-pass": ["quickstart/grpo.yaml", "miniature/grpo.yaml", "online/one_pass.yaml"],
}
"""arm -> its files in study.yaml"""


def command_of(arm, study, run):
    arguments = [word for file in FILES[arm] for word in ("--config", str(EXPERIMENTS / file))]
    arguments += ["--study_dir", str(study), "--trainer.default_root_dir", str(run), "--seed_everything", "1"]
    return [sys.executable, "-m", "grpovi_lightning.cli", "fit", *arguments]


def is_the_undisturbed_run(run, undisturbed):
    """Whether weights, curves as the report reads them, and completions are the same, bit for bit."""
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, undisturbed)]
    texts = [load_completions(folder).drop(columns=["arm", "run", "seed"]).to_json() for folder in (run, undisturbed)]
    curves = [metrics(folder.parent, seed=1) for folder in (run, undisturbed)]
    return weights[0] == weights[1] and texts[0] == texts[1] and curves[0] == curves[1]


def killed_after(command, seconds):
    """Start a command, and kill it after so many seconds; return whether it was still running."""
    process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return process.wait(seconds) is None
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


@pytest.mark.parametrize("arm", FILES)
def test_a_run_that_is_killed_at_random_moments_ends_as_the_undisturbed_one(study, tmp_path, arm, request):
    """With `--kills 200` it takes half an hour."""
    moments, kills = random.Random(arm), max(1, request.config.getoption("--kills") * 2 // 5)
    began = time.monotonic()
    run = tmp_path / "0" / "seed_1"
    subprocess.run(command_of(arm, study, run), env=ONE_THREAD, check=True, capture_output=True)
    whole = time.monotonic() - began
    assert is_the_undisturbed_run(run, study / "arms" / arm / "seed_1")
    number = 0
    while kills > 0:
        number += 1
        run = tmp_path / str(number) / "seed_1"
        for _ in range(moments.randint(1, 4)):
            kills -= killed_after([*command_of(arm, study, run), *how_to_go_on(run)], moments.uniform(0, whole))
        done = subprocess.run([*command_of(arm, study, run), *how_to_go_on(run)], env=ONE_THREAD, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        assert is_the_undisturbed_run(run, study / "arms" / arm / "seed_1"), f"after the kills of run {number}"
        shutil.rmtree(run)


def how_to_go_on(run):
    """What a run's message says: from its last checkpoint, or anew where it left none."""
    last = run / "checkpoints" / "last.ckpt"
    return ["--ckpt_path", str(last)] if last.exists() else ["--restart"]


def test_a_compare_that_is_killed_at_random_moments_ends_as_the_undisturbed_one(study, tmp_path, request):
    moments, kills = random.Random("compare"), max(1, request.config.getoption("--kills") // 5)
    output = tmp_path / "output"
    shutil.copytree(study / "prepare", output / "miniature" / "prepare")
    shutil.copy(study / "study.yaml", output / "miniature" / "study.yaml")
    file = EXPERIMENTS / "miniature" / "study.yaml"
    command = [
        sys.executable,
        "-m",
        "grpovi_lightning.cli",
        "compare",
        str(file),
        "--output",
        str(output),
        "--seeds",
        "1",
    ]
    while kills > 0:
        for _ in range(min(kills, 4)):
            kills -= killed_after(command, moments.uniform(5, 30))
        done = subprocess.run(command, env=ONE_THREAD, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        for arm in ("grpo", "grpovi", "one-pass"):
            folders = (place / "arms" / arm / "seed_1" for place in (output / "miniature", study))
            assert is_the_undisturbed_run(*folders), arm
        shutil.rmtree(output / "miniature" / "arms")


def test_a_run_that_is_set_back_to_an_earlier_checkpoint_goes_on_to_the_same_metrics_to_the_last_bit(study, tmp_path):
    run = tmp_path / "grpovi" / "seed_1"
    command = [*command_of("grpovi", study, run), "--checkpoint.save_top_k", "-1"]
    process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = tmp_path / "saved.ckpt"
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "step=4.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.copy(run / "checkpoints" / "step=2.ckpt", saved)
    assert json.loads((run / "status.json").read_text())["state"] == "running"

    subprocess.run([*command, "--ckpt_path", str(saved)], env=ONE_THREAD, check=True, capture_output=True)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert metrics(run.parent, seed=1) == metrics(study / "arms" / "grpovi", seed=1)
