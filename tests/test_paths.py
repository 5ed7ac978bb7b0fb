"""`~` is the home folder wherever a path is given, and what cannot be written to is refused before the first step."""

import json
import os
import shutil

import pytest
import yaml
from helpers.commands import refusal
from helpers.own_input import run_config, write_yaml

from grpovi_lightning.cli import main
from grpovi_lightning.errors import UserError
from grpovi_lightning.paths import check_output, expanded, expanded_arguments
from grpovi_lightning.run import RunCLI
from grpovi_lightning.study import load_study


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_text_that_is_no_path_stays_as_it_is(home):
    kept = {"text": "~", "in the middle": "a~/b", "unknown user": "~nobody-here/x", "number": 1, "list": ["x", None]}
    assert expanded(kept) == kept
    assert expanded({"deep": [{"a": "~/x"}]}) == {"deep": [{"a": f"{home}/x"}]}


def test_arguments_are_expanded_also_behind_an_equals_sign(home):
    assert expanded_arguments(["~/a", "--b", "~/c", "--d=~/e", "--f=g=~/h", "-1"]) == [
        f"{home}/a", "--b", f"{home}/c", f"--d={home}/e", "--f=g=~/h", "-1",
    ]  # fmt: skip


def test_every_path_of_a_run_may_begin_with_the_home_folder(inputs, home):
    shutil.copytree(inputs, home / "own")
    config = run_config(inputs, "unused")
    model = config["model"]["init_args"]
    model["policy"]["init_args"] |= {"path": "~/own/checkpoint"}
    package = "grpovi_lightning.rewards"
    features = {"class_path": f"{package}.online.FeatureModel"}
    features["init_args"] = {"path": "~/own/checkpoint", "cache": "${study_dir}/features"}
    linear = {"features": features, "start": "~/own/start"}
    rewards = [
        {"class_path": f"{package}.online.LinearReward", "init_args": linear},
        {"class_path": f"{package}.RewardModel", "init_args": {"path": "~/own/reward", "name": "b"}},
    ]
    model["reward"] = {"class_path": f"{package}.CompositeReward", "init_args": {"rewards": rewards}}
    config["data"]["init_args"] |= {"train": "~/own/questions.jsonl", "validation": "~/own/questions.jsonl"}
    config["checkpoint"] = {"dirpath": "~/checkpoints"}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "~/log"}}
    config["trainer"] |= {"default_root_dir": "${study_dir}/x", "logger": logger}
    os.makedirs(home / "own" / "start")
    file = write_yaml(home / "run.yaml", config)
    cli = RunCLI(["--config", file, "--study_dir", "~/runs", "--ckpt_path", "~/last.ckpt"])
    text = yaml.safe_dump(yaml.safe_load(cli.parser.dump(cli.config)))
    assert "~" not in text and text.count(str(home)) == 12
    assert cli.trainer.default_root_dir == f"{home}/runs/x" == str(cli.folder) == str(cli.status.folder)


@pytest.mark.slow
def test_a_run_in_the_home_folder_is_in_one_folder_and_reported_from_there(inputs, home, capsys):
    shutil.copy(inputs / "my_rewards.py", home.parent / "here")
    config = run_config(inputs, "~/runs/grpo/seed_1")
    config["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    write_yaml(home / "run.yaml", config)
    assert main(["fit", "--config=~/run.yaml"]) == 0
    run = home / "runs" / "grpo" / "seed_1"
    names = {path.name.split(".")[0] for path in run.iterdir() if path.name != ".lock"}
    assert names == {"checkpoints", "completions", "config", "events", "hparams", "model", "status"}
    assert {path.name for path in (home.parent / "here").iterdir()} <= {"my_rewards.py", "__pycache__"}
    assert main(["report", "~/runs"]) == 0 and (home / "runs" / "report" / "index.html").is_file()


def test_other_commands_expand_too(home, capsys):
    (home / "task.yaml").write_text("{output: ~/task, n_train: 1000, n_validation: 10, n_test: 10, n_pairs: 10}")
    sizes = ["--n_demonstrations", "10", "--n_validation_demonstrations", "10", "--n_validation_pairs", "10"]
    assert main(["task", "--config=~/task.yaml", *sizes]) == 0
    assert (home / "task" / "task.json").is_file()
    (home / "arm.yaml").write_text("x: 1")
    study = {"name": "s", "seeds": [1], "arms": {"a": {"configs": ["~/arm.yaml"]}}}
    assert load_study(write_yaml(home.parent / "study.yaml", study)).arms[0].configs[0].path == home / "arm.yaml"
    assert f"study file {home}/s.yaml" in refusal(capsys, "compare", "~/s.yaml")
    (home / "t.csv").write_text("group,reward\n1,0\n1,1\n")
    assert main(["adjust", "~/t.csv", "--lower", "0", "--upper", "1", "--output=~/out.csv"]) == 0
    assert (home / "out.csv").is_file() and not list((home.parent / "here").iterdir())


def test_a_folder_that_can_be_made_or_written_to_is_accepted_and_not_made(tmp_path):
    check_output(tmp_path, "x")
    check_output(tmp_path / "a" / "b", "x")
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=["file", "below a file", "broken link", "no permission", "name too long"])
def unwritable(request, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    mine = str(tmp_path / "mine")
    access = os.access  # asked for one folder only, because root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != mine and access(path, mode))
    return {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "x" / "y",
        "broken link": tmp_path / "link",
        "no permission": tmp_path / "mine" / "x",
        "name too long": tmp_path / ("x" * 300),
    }[request.param]


def test_a_folder_that_cannot_be_written_to_is_named_with_its_setting(unwritable):
    with pytest.raises(UserError, match=f"^--output: cannot write to {unwritable}: .*; choose a folder"):
        check_output(unwritable, "--output")


@pytest.mark.parametrize("key", ["trainer.default_root_dir", "checkpoint.dirpath"])
def test_a_run_tries_its_folders_before_it_loads_anything(inputs, tmp_path, capsys, monkeypatch, unwritable, key):
    monkeypatch.chdir(inputs)
    config = write_yaml(tmp_path / "run.yaml", run_config(inputs, tmp_path / "run"))
    before = sorted(tmp_path.rglob("*"))
    line = refusal(capsys, "fit", "--config", config, f"--{key}", unwritable)
    assert line.startswith(f"{key}: cannot write to {unwritable}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_whose_model_cannot_be_exported_does_not_begin(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(inputs)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").write_text("")
    config = write_yaml(tmp_path / "run.yaml", run_config(inputs, tmp_path / "run"))
    assert f"{tmp_path}/run/model is not a folder" in refusal(capsys, "fit", "--config", config)


def test_other_commands_try_their_output_first(tmp_path, capsys, unwritable):
    assert "output: cannot write to" in refusal(capsys, "task", "--output", unwritable)
    (tmp_path / "arm.yaml").write_text("x: 1")
    study = {"name": "s", "seeds": [1], "arms": {"a": {"configs": ["arm.yaml"]}}}
    study_file = write_yaml(tmp_path / "study.yaml", study)
    assert "--output: cannot write to" in refusal(capsys, "compare", study_file, "--output", unwritable)


@pytest.mark.parametrize("place", ["report", "arms", "arms/a", "arms/a/seed_1"])
def test_a_file_where_a_study_or_report_writes_is_found_first(tmp_path, capsys, place):
    (tmp_path / "arm.yaml").write_text("x: 1")
    study = {"name": "s", "seeds": [1], "arms": {"a": {"configs": ["arm.yaml"]}}}
    study_file = write_yaml(tmp_path / "study.yaml", study)
    folder = tmp_path / "runs" / "s"
    (folder / place).parent.mkdir(parents=True)
    (folder / place).write_text("")
    record = study | {"schema": 2, "files": {"arm.yaml": {"x": 1}}}
    (folder / "study.yaml").write_text(json.dumps(record))
    line = refusal(capsys, "compare", study_file, "--output", tmp_path / "runs")
    assert f"{folder / place} is not a folder" in line
    if place == "report":
        assert f"{folder / place} is not a folder" in refusal(capsys, "report", folder)
