"""Any logger writes into the run's folder, on the axis of `metric_keys`; the report names what it cannot read."""

import csv
import json

import pytest
from helpers.own_input import run_config, write_yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from modules.grpo_runs import scalars

from analysis import load_status
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
    """The folder of a run that logged with both loggers."""
    root = tmp_path_factory.mktemp("both")
    config = run_config(inputs, root / "run")
    config["trainer"] |= {"logger": ["TensorBoardLogger", "CSVLogger"], "max_steps": 2, "val_check_interval": 2}
    config["checkpoint"] = {"every_n_train_steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        assert main(["fit", "--config", write_yaml(root / "run.yaml", config)]) == 0
    return root / "run"


def test_both_loggers_have_the_same_values_at_the_same_steps(logged):
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
    assert json.loads((logged / "status.json").read_text())["loggers"] == ["TensorBoardLogger", "CSVLogger"]
    assert load_status(logged)["problem"].tolist() == [None]


@pytest.mark.parametrize(
    ("logger", "said"),
    [
        ("CSVLogger", "this run has no TensorBoard files; it logged with CSVLogger"),
        (False, "this run has no TensorBoard files"),
    ],
    ids=str,
)
def test_the_report_names_the_logger_that_it_cannot_read(configured, tmp_path, capsys, logger, said):
    assert main(["fit", "--config", configured(logger, max_steps=1)]) == 0
    assert load_status(tmp_path / "run")["problem"].tolist() == [said]
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
