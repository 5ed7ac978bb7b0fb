"""Any logger writes into the run's folder, on the axis of `metric_keys`; the report names what it cannot read."""

import csv
import json
import shutil

import pandas as pd
import pytest
from helpers.own_input import run_config, write_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from modules.grpo_runs import scalars

from analysis import load_runs, load_status
from grpovi_lightning.cli import main
from grpovi_lightning.run import RunCLI


@pytest.fixture
def configured(inputs, tmp_path, monkeypatch):
    """Writes the YAML of a run with such a logger; returns its path."""
    monkeypatch.chdir(inputs)

    def write(logger, **trainer):
        config = run_config(inputs, tmp_path / "run")
        config["trainer"] |= {"logger": logger, "max_steps": 2, "val_check_interval": 2} | trainer
        return write_yaml(tmp_path / "run.yaml", config)

    return write


RECORDING = {"class_path": "helpers.recording_logger.RecordingLogger"}
CSV, TENSORBOARD = (CSVLogger, "lightning_logs/version_0"), (TensorBoardLogger, "")


@pytest.mark.parametrize(
    ("logger", "expected"),
    [
        (None, [TENSORBOARD]),
        (True, [TENSORBOARD]),
        (False, []),
        ("CSVLogger", [CSV]),
        ("TensorBoardLogger", [TENSORBOARD]),
        ({"class_path": "CSVLogger"}, [CSV]),
        ({"class_path": "lightning.pytorch.loggers.CSVLogger"}, [CSV]),
        ({"class_path": "CSVLogger", "init_args": {"name": "mine"}}, [(CSVLogger, "mine/version_0")]),
        ([{"class_path": "TensorBoardLogger"}, {"class_path": "CSVLogger"}], [TENSORBOARD, CSV]),
        (["TensorBoardLogger", "CSVLogger"], [TENSORBOARD, CSV]),
    ],
    ids=str,
)
def test_the_run_s_folder_is_the_default_place_of_a_logger(configured, tmp_path, logger, expected):
    loggers = RunCLI(["--config", configured(logger)]).trainer.loggers
    assert [type(each) for each in loggers] == [kind for kind, _ in expected]
    assert [each.log_dir.rstrip("/") for each in loggers] == [
        str(tmp_path / "run" / place).rstrip("/") for _, place in expected
    ]


def test_a_place_that_was_named_is_kept(configured, tmp_path):
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "elsewhere")}}
    (made,) = RunCLI(["--config", configured(logger)]).trainer.loggers
    assert made.log_dir == str(tmp_path / "elsewhere" / "lightning_logs" / "version_0")


@pytest.fixture(scope="module")
def logged(inputs, tmp_path_factory):
    """The folder of a run that logged with TensorBoard's logger, `CSVLogger` and one of another class."""
    root = tmp_path_factory.mktemp("both")
    config = run_config(inputs, root / "run")
    loggers = [{"class_path": "TensorBoardLogger"}, {"class_path": "CSVLogger"}, RECORDING]
    config["trainer"] |= {"logger": loggers, "max_steps": 2, "val_check_interval": 2}
    config["checkpoint"] = {"every_n_train_steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        assert main(["fit", "--config", write_yaml(root / "run.yaml", config)]) == 0
    return root / "run"


def test_all_loggers_have_the_same_values_at_the_same_steps(logged):
    with (logged / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        step = int(row.pop("step"))
        for name, value in row.items():
            if value:
                found.setdefault(name, {})[step] = float(value)
    expected = scalars(logged, timings=True)
    found.pop("epoch", None)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, nan_ok=True), name
    assert sorted(found["reward"]) == [0, 1] and sorted(found["eval/reward"]) == [0, 2]
    recorded: dict = {}
    for line in (logged / "recorded.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry["content"].items() if entry["what"] == "metrics" else ():
            recorded.setdefault(name, {})[entry["step"]] = value
    recorded.pop("epoch", None)
    assert recorded.keys() == expected.keys()
    for name, values in expected.items():
        assert recorded[name] == pytest.approx(values, nan_ok=True), name
    loggers = json.loads((logged / "status.json").read_text())["loggers"]
    assert loggers == ["TensorBoardLogger", "CSVLogger", "RecordingLogger"]
    assert load_status(logged)["problem"].tolist() == [None]


def test_other_loggers_receive_the_settings_that_tell_runs_apart(logged):
    entries = [json.loads(line) for line in (logged / "recorded.jsonl").read_text().splitlines()]
    (settings,) = [entry["content"] for entry in entries if entry["what"] == "settings"]
    assert settings == {
        "arm": "run",
        "seed": 1,
        "adjustment": "IdentityAdjustment",
        "advantage": "GroupAdvantage",
        "loss": "GRPOLoss",
        "beta": 0.04,
        "group_size": 4,
        "lr": 1e-3,
    }


def test_a_run_of_the_csv_logger_alone_is_read_like_one_of_tensorboard(logged, tmp_path):
    alone = tmp_path / "run"
    shutil.copytree(logged, alone, ignore=shutil.ignore_patterns("events*", ".scalars*"))
    assert load_status(alone)["problem"].tolist() == [None]
    of_csv, of_events = (
        runs[runs["metric"] != "epoch"][["metric", "step", "value"]].astype({"metric": "str"}).reset_index(drop=True)
        for runs in (load_runs(alone), load_runs(logged))
    )
    pd.testing.assert_frame_equal(of_csv, of_events, rtol=1e-6)  # TensorBoard keeps 32 bits of a value


@pytest.mark.parametrize(
    ("logger", "said"),
    [
        (RECORDING, "this run has no TensorBoard or CSV log; it logged with RecordingLogger"),
        (False, "this run has no TensorBoard or CSV log"),
    ],
    ids=["another logger", "none"],
)
def test_the_report_names_the_logger_that_it_cannot_read(configured, tmp_path, capsys, logger, said):
    assert main(["fit", "--config", configured(logger, max_steps=1)]) == 0
    assert load_status(tmp_path / "run")["problem"].tolist() == [said]
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
