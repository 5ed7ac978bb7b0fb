"""A command that has nothing to do says so in one line, with status 2, and loads and writes nothing."""

import pytest
from helpers.own_input import run_config, write_own_input, write_yaml

from grpovi_lightning.cli import main
from grpovi_lightning.run_record.status import RunRecord, write_status

SILENT = '''
from grpovi_lightning.modules import SFTModule


class Silent(SFTModule):
    """Evaluates and keeps the result to itself."""

    def on_validation_epoch_end(self):
        self.held_out_losses.clear()

    on_test_epoch_end = on_validation_epoch_end
'''


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    write_own_input(root)
    (root / "silent.py").write_text(SILENT)
    return root


@pytest.fixture
def refused(inputs, tmp_path, monkeypatch, capsys):
    """Runs a command; returns the one line that it printed."""

    def run(*arguments):
        monkeypatch.chdir(inputs)
        assert main(list(arguments)) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpovi: error: ")]
        assert len(lines) == 1
        return lines[0].removeprefix("grpovi: error: ")

    return run


TABLES = {"validate": "validation", "test": "test"}


@pytest.mark.parametrize(
    ("command", "change", "said"),
    [
        ("validate", {"data.init_args.validation": None}, "no validation table: got validation null, expected a file"),
        ("test", {"data.init_args.test": None}, "no test table: got test null, expected a file"),
        ("validate", {"trainer.limit_val_batches": 0}, "nothing to validate: got trainer.limit_val_batches 0"),
        ("test", {"trainer.limit_test_batches": 0.0}, "nothing to test: got trainer.limit_test_batches 0"),
        ("fit", {"trainer.limit_train_batches": 0}, "trainer.limit_train_batches: got 0, expected None"),
    ],
)
def test_nothing_to_train_or_evaluate_is_refused(refused, inputs, tmp_path, command, change, said):
    config = run_config(inputs, tmp_path / "run")
    config["data"]["init_args"] |= {"test": "questions.jsonl"}
    for key, value in change.items():
        place = config
        for part in key.split(".")[:-1]:
            place = place[part]
        place[key.split(".")[-1]] = value
    (inputs / "checkpoint" / "config.json").rename(inputs / "config.json")  # a model would fail to load
    try:
        assert said in refused(command, "--config", write_yaml(tmp_path / "run.yaml", config))
    finally:
        (inputs / "config.json").rename(inputs / "checkpoint" / "config.json")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", TABLES)
def test_an_evaluation_that_logged_nothing_says_so(refused, inputs, tmp_path, command):
    config = run_config(inputs, tmp_path / "run")
    policy = config["model"]["init_args"]["policy"]
    config["model"] = {"class_path": "silent.Silent", "init_args": {"policy": policy}}
    config["data"] = {
        "class_path": "grpovi_lightning.data.DemonstrationDataModule",
        "init_args": {"train": "questions.jsonl", "prompt_column": "question", "completion_column": "answer"}
        | {TABLES[command]: "questions.jsonl", "batch_size": 2},
    }
    line = refused(command, "--config", write_yaml(tmp_path / "run.yaml", config))
    assert line.startswith(f"{command}: Silent logged no metric")


def test_a_report_on_runs_without_scalars_says_why(refused, tmp_path):
    for seed in (1, 2):
        record = RunRecord(state="finished", seed=seed, step=3, max_steps=3, loggers=("WandbLogger",))
        write_status(tmp_path / "runs" / "grpo" / f"seed_{seed}", record)
    line = refused("report", str(tmp_path / "runs"))
    assert "no run has scalars; grpo/seed_1: this run has no TensorBoard or CSV log; it logged with WandbLogger" in line
