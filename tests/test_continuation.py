"""Runs that stop before their end go on from where they stopped, and advice about it can be followed."""

import json
import shutil

import pytest
from helpers.commands import refusal
from helpers.own_input import run_config, write_own_input, write_yaml
from modules.grpo_runs import scalars

from analysis import load_completions
from grpovi_lightning.cli import main

MODULES = "grpovi_lightning.modules"


def sft_config(root, run):
    config = run_config(root, run)
    arguments = config["model"]["init_args"]
    config["model"] = {"class_path": f"{MODULES}.SFTModule", "init_args": {"policy": arguments["policy"]}}
    columns = {"prompt_column": "question", "completion_column": "answer", "batch_size": 2}
    config["data"] = {
        "class_path": "grpovi_lightning.data.DemonstrationDataModule",
        "init_args": dict.fromkeys(("train", "validation"), str(root / "questions.jsonl")) | columns,
    }
    return config


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """One's own input; a run of GRPO and one of fine-tuning, both of two steps."""
    root = tmp_path_factory.mktemp("own")
    write_own_input(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, make in (("grpo", run_config), ("sft", sft_config)):
            config = make(root, root / name)
            config["trainer"] |= {"max_steps": 2, "val_check_interval": None, "check_val_every_n_epoch": 1}
            config["checkpoint"] = {"every_n_train_steps": 1}
            assert main(["fit", "--config", write_yaml(root / f"{name}.yaml", config)]) == 0
    return root


@pytest.fixture
def here(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    return inputs


def status(run):
    return json.loads((run / "status.json").read_text())


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_a_run_ended_by_its_time_says_so_and_goes_on(here, tmp_path, capsys):
    run = tmp_path / "run"
    config = run_config(here, run)
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 2, "max_time": {"milliseconds": 1}}
    config["checkpoint"] = {"every_n_train_steps": 4}
    arguments = ["fit", "--config", write_yaml(tmp_path / "run.yaml", config)]
    assert main(arguments) == 0
    stopped, last = status(run), run / "checkpoints" / "last.ckpt"
    assert (stopped["state"], stopped["max_steps"]) == ("interrupted", 4) and 0 < stopped["step"] < 4
    assert stopped["error"] == "stopped before its last step, by trainer.max_time or a callback"
    assert f"at step {stopped['step']} of 4; continue it with --ckpt_path {last}" in capsys.readouterr().err

    assert main([*arguments, "--trainer.max_time", "null", "--ckpt_path", str(last)]) == 0
    assert (status(run)["state"], status(run)["step"], status(run)["error"]) == ("finished", 4, None)
    config["trainer"] |= {"max_time": None, "default_root_dir": str(tmp_path / "whole")}
    assert main(["fit", "--config", write_yaml(tmp_path / "whole.yaml", config)]) == 0
    whole, parts = (scalars(folder)["reward"] for folder in (tmp_path / "whole", run))
    assert parts == whole and sorted(whole) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("cut.ckpt", lambda path, root: path.write_bytes(last(root).read_bytes()[:-2000]), "was cut short"),
        ("text.ckpt", lambda path, root: path.write_text("hello"), "no checkpoint or was cut short"),
        ("folder.ckpt", lambda path, root: path.mkdir(), "got a folder"),
        ("damaged.ckpt", lambda path, root: path.write_bytes(damaged(last(root).read_bytes())), "cannot be read"),
        (
            "model.ckpt",
            lambda path, root: shutil.copy(root / "checkpoint" / "model.safetensors", path),
            "no checkpoint",
        ),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_file_that_is_no_whole_checkpoint_is_one_line(here, tmp_path, capsys, name, make, said, command):
    make(tmp_path / name, here)
    before = tree(here)
    line = refusal(capsys, command, "--config", "grpo.yaml", "--ckpt_path", tmp_path / name)
    assert line.startswith(f"checkpoint {tmp_path / name}: ") and said in line
    assert tree(here) == before


def last(root):
    return root / "grpo" / "checkpoints" / "last.ckpt"


def damaged(content):
    """The file with other bytes in place of its first record, which says what is in it."""
    return content[:100] + bytes(400) + content[500:]


def test_a_cut_checkpoint_is_refused_with_one_that_is_whole(here, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(here / "grpo" / "checkpoints", folder)
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-2000])
    line = refusal(capsys, "fit", "--config", "grpo.yaml", "--ckpt_path", folder / "last.ckpt")
    assert line.endswith(f"was cut short; continue from {folder / 'step=2.ckpt'}")


@pytest.mark.parametrize(("mine", "other"), [("grpo", "sft"), ("sft", "grpo")])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_kind_of_run_is_one_line(here, capsys, mine, other, command):
    before = tree(here)
    checkpoint = here / other / "checkpoints" / "last.ckpt"
    line = refusal(capsys, command, "--config", f"{mine}.yaml", "--ckpt_path", checkpoint)
    assert line.startswith(f"checkpoint {checkpoint} is not of this run: ") and "with the same models" in line
    assert tree(here) == before


def test_a_checkpoint_of_another_model_size_is_one_line(here, tmp_path, capsys, policy_folder):
    before = tree(here)
    arguments = ["--model.init_args.policy.init_args.path", policy_folder]
    line = refusal(capsys, "fit", "--config", "grpo.yaml", "--ckpt_path", last(here), *arguments)
    assert "is not of this run: size mismatch for policy." in line
    assert tree(here) == before


def test_a_finished_run_can_go_on_with_what_its_refusal_says(here, tmp_path, capsys):
    line = refusal(capsys, "fit", "--config", "grpo.yaml")
    assert line.endswith(f"or continue it with --ckpt_path {last(here)} and a larger trainer.max_steps")


@pytest.mark.slow
def test_a_run_that_left_no_checkpoint_can_be_begun_anew(here, tmp_path, capsys):
    run = tmp_path / "run"
    mended = ["--model.init_args.reward.init_args.function", "my_rewards.digits_in_common"]
    config = run_config(here, run)
    config["trainer"] |= {"max_steps": 2, "val_check_interval": None, "check_val_every_n_epoch": 1}
    config["model"]["init_args"]["reward"]["init_args"]["function"] = "builtins.dict"  # no list of numbers
    arguments = ["fit", "--config", write_yaml(tmp_path / "run.yaml", config)]
    assert main(arguments) == 1 and status(run)["state"] == "failed"

    line = refusal(capsys, *arguments)
    assert line == (
        f"run folder {run} holds a failed run already, without a checkpoint to continue from; choose another "
        "trainer.default_root_dir, or begin it anew with --restart"
    )
    (run / "completions").mkdir(exist_ok=True)
    (run / "completions" / "train-000000.parquet").write_bytes(b"of the old attempt")
    assert main([*arguments, *mended, "--restart"]) == 0
    assert sorted(set(load_completions(run)["step"])) == [0, 1, 2]
    assert status(run)["state"] == "finished" and len(list(run.glob("events*"))) == 1
    assert sorted(scalars(run)["eval/reward"]) == [0, 2] and "restart: false" in (run / "config.yaml").read_text()

    line = refusal(capsys, *arguments, *mended, "--restart")  # now there is something to lose
    assert f"continue it with --ckpt_path {run / 'checkpoints' / 'last.ckpt'}" in line
