"""One's own model, prompts and reward function, from YAML alone, as README shows it."""

import csv
import json

import pytest
from helpers.own_input import run_config, write_own_input, write_yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpovi_lightning.cli import main

VARIANCE_INCREASE = {"class_path": "grpovi_lightning.adjustment.VarianceIncrease"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """GRPO and GRPOVI, two seeds each, five steps, in one folder."""
    root = tmp_path_factory.mktemp("own")
    write_own_input(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for arm, changes in (("grpo", {}), ("grpovi", {"adjustment": VARIANCE_INCREASE})):
            config = write_yaml(root / f"{arm}.yaml", run_config(root, root / "unused", **changes))
            for seed in (1, 2):
                folder = root / "runs" / arm / f"seed_{seed}"
                place = ["--trainer.default_root_dir", str(folder), "--seed_everything", str(seed)]
                assert main(["fit", "--config", config, *place]) == 0
    return root / "runs"


def scalars(run):
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def without_clock(values):
    clock = ("time", "seconds", "throughput")
    return {tag: value for tag, value in values.items() if not any(word in tag for word in clock)}


def test_both_arms_train_five_steps_and_leave_their_record(runs):
    for run in runs.glob("*/seed_*"):
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["step"], status["error"]) == ("finished", 5, None)
        assert [step for step, _ in scalars(run)["reward"]] == [0, 1, 2, 3, 4]
        assert [step for step, _ in scalars(run)["eval/reward"]] == [0, 5]
        assert (run / "model" / "model.safetensors").is_file()
        checkpoints = {path.name: path.is_symlink() for path in (run / "checkpoints").iterdir()}
        assert checkpoints == {"step=5.ckpt": False, "last.ckpt": True}


def test_arms_of_one_seed_sample_the_same_first_rollout_and_then_part(runs):
    first = {
        (run.parent.name, run.name): json.loads((run / "status.json").read_text())["first_rollout"]
        for run in runs.glob("*/seed_*")
    }
    assert first["grpo", "seed_1"] == first["grpovi", "seed_1"] != first["grpo", "seed_2"]
    grpo, grpovi = (scalars(runs / arm / "seed_1") for arm in ("grpo", "grpovi"))
    assert grpo["reward"][0] == grpovi["reward"][0]
    assert grpo["grad_norm"] != grpovi["grad_norm"]


def test_the_reward_function_read_the_answer_column(runs):
    values = scalars(runs / "grpo" / "seed_1")["rewards/digits_in_common/std"]
    assert all(value > 0 for _, value in values)


def test_report_compares_the_runs(runs, capsys):
    assert main(["report", str(runs), "--baseline", "grpo"]) == 0
    assert "grpovi" in capsys.readouterr().out
    with (runs / "report" / "efficiency.csv").open() as table:
        rows = {row["arm"]: row for row in csv.DictReader(table)}
    assert set(rows) == {"grpo", "grpovi"}
    assert rows["grpovi"]["baseline"] == "grpo" and rows["grpovi"]["n_seeds"] == "2"
    assert rows["grpovi"]["metric"] == "eval/reward"


def test_the_same_arm_and_seed_gives_the_same_metrics_to_the_last_bit(runs, monkeypatch):
    root = runs.parent
    monkeypatch.chdir(root)
    again = root / "again" / "grpovi" / "seed_1"
    assert main(["fit", "--config", "grpovi.yaml", "--trainer.default_root_dir", str(again)]) == 0
    expected = without_clock(scalars(runs / "grpovi" / "seed_1"))
    assert len(expected) > 30
    assert without_clock(scalars(again)) == expected


def test_validate_and_test_evaluate_a_checkpoint_without_touching_the_run(runs, monkeypatch, capsys):
    root = runs.parent
    monkeypatch.chdir(root)
    run = runs / "grpo" / "seed_1"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    checkpoint = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.default_root_dir", str(run)]
    assert main(["validate", "--config", "grpo.yaml", *checkpoint]) == 0
    assert "eval/reward" in capsys.readouterr().out
    assert main(["test", "--config", "grpo.yaml", *checkpoint]) == 2
    assert "no test table" in capsys.readouterr().err
    assert main(["test", "--config", "grpo.yaml", *checkpoint, "--data.init_args.test", "questions.jsonl"]) == 0
    assert "test/reward" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
