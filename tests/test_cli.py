"""Bad input: one clear line, status 2, nothing written."""

import json
import re
import subprocess
import sys

import pytest
import torch
from helpers.own_input import run_config, write_yaml

from grpovi_lightning.cli import check_fit, main


@pytest.fixture
def refused(inputs, tmp_path, monkeypatch, capsys):
    """Runs `grpovi fit` on the YAML after `change` was made to it; returns the one line it printed."""
    monkeypatch.chdir(inputs)

    def run(change=lambda config: None, *arguments: str) -> str:
        config = run_config(inputs, tmp_path / "run")
        change(config)
        capsys.readouterr()
        status = main(["fit", "--config", write_yaml(tmp_path / "run.yaml", config), *arguments])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpovi: error: ")]
        assert status == 2
        assert len(lines) == 1
        assert not (tmp_path / "run").exists()
        return lines[0].removeprefix("grpovi: error: ")

    return run


def model(config):
    return config["model"]["init_args"]


VARIANCE_INCREASE = {
    "class_path": "grpovi_lightning.adjustment.VarianceIncrease",
    "init_args": {"weights": {"class_path": "grpovi_lightning.adjustment.UniformWeights"}},
}


def test_a_missing_config_file_is_named(refused):
    line = refused(lambda config: None, "--config", "nowhere.yaml")
    assert "does not exist" in line and "nowhere.yaml" in line


def test_a_missing_checkpoint_is_named_with_what_was_expected(refused):
    line = refused(lambda config: model(config)["policy"]["init_args"].update(path="./no-model"))
    assert "./no-model" in line and "no such folder" in line and "config.json" in line


def test_a_missing_data_file_is_named(refused):
    line = refused(lambda config: config["data"]["init_args"].update(train="none.jsonl"))
    assert "none.jsonl" in line and "no such file" in line


def test_a_missing_column_is_named_with_the_columns_there_are(refused):
    line = refused(lambda config: config["data"]["init_args"].update(prompt_column="prompt"))
    assert "'prompt'" in line and "question, answer" in line


def test_a_misspelt_key_gets_the_nearest_known_one(refused):
    line = refused(lambda config: model(config).update(grup_size=4))
    assert "'grup_size' is not accepted" in line and "did you mean 'group_size'?" in line


def test_a_misspelt_top_level_key_is_named(refused):
    assert "modell" in refused(lambda config: config.update(modell=3))


def test_a_value_of_the_wrong_type_is_named(refused):
    line = refused(lambda config: config["trainer"].update(max_steps="many"))
    assert "max_steps" in line and "many" in line


TWO_UPDATES = {"updates": {"num_minibatches": 2}}
RESAMPLING = {"resampling": {"class_path": "grpovi_lightning.modules.DynamicResampling"}}
SPARE = {"spare_prompts_per_step": 2}
CURRICULUM = {
    "resampling": {
        "class_path": "grpovi_lightning.selection.VarianceCurriculum",
        "init_args": {"threshold": 0.5, "capacity": 4, "momentum": 0.5},
    }
}
LARGE = {"selection": {"class_path": "grpovi_lightning.selection.MaxVarianceSelection", "init_args": {"keep": 99}}}


@pytest.mark.parametrize(
    ("module", "data", "trainer", "checkpoint", "expected"),
    [
        (TWO_UPDATES, {}, {"max_steps": 5}, {}, "trainer.max_steps counts updates: got 5 with 2 updates"),
        (TWO_UPDATES, {}, {}, {"every_n_train_steps": 3}, "checkpoint.every_n_train_steps counts updates: got 3"),
        (
            {"updates": {"num_minibatches": 3}},
            {},
            {"max_steps": 6},
            {},
            "num_minibatches: got 3, which does not divide the 2 prompts",
        ),
        ({"updates": {"max_grad_norm": float("nan")}}, {}, {}, {}, "max_grad_norm: got nan, expected above 0"),
        ({}, {}, {"gradient_clip_val": 1.0}, {}, "trainer.gradient_clip_val: got 1.0, which has no effect"),
        ({}, {}, {"accumulate_grad_batches": 2}, {}, "trainer.accumulate_grad_batches: got 2, which has no effect"),
        (RESAMPLING, {}, {}, {}, "spare_prompts_per_step: got 0 with resampling DynamicResampling"),
        ({}, SPARE, {}, {}, "spare_prompts_per_step: got 2 with resampling EveryPrompt"),
        (CURRICULUM, SPARE, {}, {}, "spare_prompts_per_step: got 2 with resampling VarianceCurriculum"),
        (LARGE, {}, {}, {}, "MaxVarianceSelection keep: got 99, expected at most group_size"),
        (
            {"updates": {"skip_zero_advantage_groups": True}},
            {},
            {},
            {},
            "updates.skip_zero_advantage_groups cannot take effect: got beta 0.04",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_loaded(
    refused, module, data, trainer, checkpoint, expected
):
    def change(config):
        config["data"]["init_args"] |= {"prompts_per_step": 2} | data
        config["trainer"] |= {"max_steps": 4} | trainer
        model(config).update({"loss": {"class_path": "grpovi_lightning.losses.GRPOLoss", "init_args": {"beta": 0.04}}})
        model(config).update(module)
        config["checkpoint"] = {"every_n_train_steps": 2} | checkpoint

    assert expected in refused(change)


def test_a_class_that_does_not_exist_is_named(refused):
    line = refused(
        lambda config: model(config).update(adjustment={"class_path": "grpovi_lightning.adjustment.Nothing"})
    )
    assert "grpovi_lightning.adjustment.Nothing" in line


def test_a_group_of_one_is_refused(refused):
    line = refused(lambda config: model(config).update(group_size=1))
    assert "group_size: got 1, expected at least 2" in line


def test_an_adjustment_that_cannot_take_effect_is_refused(refused):
    line = refused(lambda config: model(config).update(group_size=2, adjustment=VARIANCE_INCREASE))
    assert "VarianceIncrease cannot take effect" in line and "scale_rewards none" in line


def test_a_missing_seed_is_refused(refused):
    line = refused(lambda config: config.pop("seed_everything"))
    assert line.startswith("no seed") and "seed_everything: 1" in line


def test_a_missing_run_folder_is_refused(refused):
    line = refused(lambda config: config["trainer"].pop("default_root_dir"))
    assert line.startswith("no run folder") and "default_root_dir" in line


def test_more_prompts_a_step_than_there_are_is_refused(refused):
    line = refused(lambda config: config["data"]["init_args"].update(prompts_per_step=4000))
    assert re.search(r"too few rows: got 40, expected at least .* 4000", line)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nowhere.reward", "no module named 'nowhere'"),
        ("my_rewards.missing", "my_rewards has no 'missing'"),
        ("plain", "expected an import path"),
    ],
)
def test_a_reward_function_that_cannot_be_found_is_named(refused, function, said):
    line = refused(lambda config: model(config)["reward"]["init_args"].update(function=function))
    assert said in line


def table(config, file, rows):
    """Writes a table and puts it into the configuration."""
    config["data"]["init_args"].update(train=str(file), validation=None, columns=None)
    file.write_text(rows)


def test_a_column_that_the_reward_function_needs_is_missed_before_anything_is_loaded(refused, tmp_path):
    rows = '{"question": "a", "level": 1}\n' * 2
    line = refused(lambda config: table(config, tmp_path / "q.jsonl", rows))
    assert "digits_in_common needs the argument 'answer', but the columns of the train table are level" in line


def test_a_row_without_a_prompt_is_found_before_anything_is_loaded(refused, tmp_path):
    rows = '{"question": "a", "answer": "1"}\n' * 39 + '{"question": null}\n'
    line = refused(lambda config: table(config, tmp_path / "q.jsonl", rows))
    assert "q.jsonl: question in row 39 (line 40): got None, expected text" in line


@pytest.mark.parametrize(
    ("kind", "said"), [("int", "answer in row 1 (line 3): got 'x', expected int"), ("text", "csv_types")]
)
def test_types_of_csv_columns_are_checked_before_anything_is_loaded(refused, tmp_path, kind, said):
    def change(config):
        table(config, tmp_path / "q.csv", "question,answer\na,1\nb,x\n")
        config["data"]["init_args"]["csv_types"] = {"answer": kind}

    assert said in refused(change)


def test_a_reward_function_that_raises_fails_the_run_in_one_line_and_the_run_can_go_on(
    inputs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(inputs)
    (inputs / "failing_rewards.py").write_text(
        "calls = []\n\n"
        "def fails_once(completions, answer):\n"
        "    calls.append(len(completions))\n"
        "    return [1 / (len(calls) != 2) * len(text) for text in completions]\n"
    )
    config = run_config(inputs, tmp_path / "run")
    model(config)["reward"]["init_args"]["function"] = "failing_rewards.fails_once"
    table(config, tmp_path / "q.jsonl", '{"question": "a b", "answer": "1", "level": 2}\n' * 8)
    config["trainer"].update(max_steps=2)
    config["checkpoint"] = {"every_n_train_steps": 1}
    arguments = ["fit", "--config", write_yaml(tmp_path / "run.yaml", config)]
    assert main(arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpovi: error: ")]
    kept = tmp_path / "run" / "failed_reward_step_1_rank_0.json"
    assert re.search(
        r"fails_once raised ZeroDivisionError: .*failing_rewards.py, line 5\); rows of step 1: \d, \d;", line
    )
    assert f"its batch is in {kept}" in line
    assert [row["columns"] for row in json.loads(kept.read_text())["rows"]] == [{"answer": "1", "level": 2}] * 2
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and status["error"] == f"TrainingError: {line.removeprefix('grpovi: error: ')}"
    assert main([*arguments, "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt")]) == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


def test_a_checkpoint_to_continue_from_must_exist(refused):
    assert "no-such.ckpt: no such file" in refused(lambda config: None, "--ckpt_path", "no-such.ckpt")


def test_a_checkpoint_to_continue_from_must_be_whole_and_not_beyond_the_end(refused, tmp_path):
    path = tmp_path / "step=8.ckpt"
    torch.save({"global_step": 8, "state_dict": {}, "loops": {}, "optimizer_states": []}, path)
    assert "it is of step 8, beyond trainer.max_steps 5" in refused(lambda config: None, "--ckpt_path", str(path))
    path.write_bytes(path.read_bytes()[:-30])
    assert "step=8.ckpt: got a file that is no checkpoint or was cut short" in refused(
        lambda config: None, "--ckpt_path", str(path)
    )


def test_a_number_of_checkpoints_without_an_order_among_them_is_refused(refused):
    assert "save_top_k=3" in refused(lambda config: config.update(checkpoint={"save_top_k": 3}))


def test_a_batch_that_does_not_divide_over_processes_is_refused(refused):
    def change(config):
        config["data"]["init_args"]["prompts_per_step"] = 3
        config["trainer"].update(devices=2, strategy="ddp")

    assert "a step's 3 rows do not divide over 2 processes" in refused(change)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ('{"state": "finished"}', "holds a finished run already"),
        ('{"state": "fin', "holds a damaged run already"),
        ('{"schema": 3, "state": "finished"}', "status.json has layout 3, and this version of grpovi reads layouts 1"),
    ],
)
def test_a_run_folder_in_use_is_left_alone(inputs, tmp_path, monkeypatch, capsys, status, said):
    monkeypatch.chdir(inputs)
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text(status)
    config = write_yaml(tmp_path / "run.yaml", run_config(inputs, run))
    assert main(["fit", "--config", config]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert said in line and ("--restart" in line or "layout" in line)
    assert [file.name for file in run.iterdir()] == ["status.json"] and (run / "status.json").read_text() == status


def test_an_unknown_command_lists_the_commands(capsys):
    assert main(["train"]) == 2
    assert (
        "unknown command 'train', expected one of fit, validate, test, task, compare, report" in capsys.readouterr().err
    )


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"\n  {name}" in usage for name in ("fit", "validate", "test", "task", "compare", "report"))


def test_no_command_prints_the_usage_and_fails(capsys):
    assert main([]) == 2
    assert "usage: grpovi" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "nowhere.yaml"], "nowhere.yaml"),
        (["compare"], "required: study"),
        (["compare", "s.yaml", "--seeds", "one"], "expected integers such as 1,2,3"),
        (["report", "nowhere"], "nowhere"),
        (["task", "--outptu", "x"], "outptu"),
        (["task"], "output"),
    ],
)
def test_other_commands_refuse_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("grpovi: error: ") and said in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_correct_configuration_passes_the_check_without_writing(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs)
    check_fit(["--config", write_yaml(tmp_path / "run.yaml", run_config(inputs, tmp_path / "run"))])
    assert [file.name for file in tmp_path.iterdir()] == ["run.yaml"]


def test_a_number_of_batches_stays_a_whole_number(inputs, tmp_path):
    """In a process of its own: which libraries were imported before Lightning decides how `int | float` is read."""
    config = write_yaml(tmp_path / "run.yaml", run_config(inputs, tmp_path / "run"))
    command = [sys.executable, "-m", "grpovi_lightning.cli", "fit", "--config", config]
    command += ["--trainer.limit_val_batches", "1", "--print_config"]
    printed = subprocess.run(command, cwd=inputs, capture_output=True, text=True, check=True).stdout
    assert "limit_val_batches: 1\n" in printed


def online_reward(config, estimator=None, selection=None, oracle=None, **online):
    """Puts a reward that learns from a person's answers into the configuration."""
    package = "grpovi_lightning.rewards.online"
    path = model(config)["policy"]["init_args"]["path"]
    asked = {"class_path": f"{package}.FileOracle", "init_args": {"folder": "${trainer.default_root_dir}/oracle"}}
    asked["init_args"] |= {"timeout_seconds": 0.0}
    learning = {"oracle": oracle or asked, "every_n_steps": 2, "pairs_per_round": 2} | online
    if selection:
        learning["selection"] = {"class_path": f"{package}.{selection}"}
    estimator = estimator or {"class_path": f"{package}.OnlineMirrorDescent", "init_args": {"lam": 0.5}}
    model(config)["reward"] = {
        "class_path": f"{package}.LinearReward",
        "init_args": {
            "features": {"class_path": f"{package}.FeatureModel", "init_args": {"path": path}},
            "estimator": estimator,
            "online": {"class_path": f"{package}.OnlineLearning", "init_args": learning},
        },
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every_n_steps": 0}, "online learning every_n_steps: got 0, expected at least 1"),
        ({"estimator": ("OnlineMirrorDescent", {"lam": 0.0})}, "lam: got 0.0, expected a positive, finite number"),
        ({"estimator": ("OnlineMirrorDescent", {"radius": -2.0})}, "radius: got -2.0, expected a positive"),
        (
            {
                "estimator": (
                    "StochasticGradientDescent",
                    {
                        "rate": {
                            "class_path": "grpovi_lightning.rewards.online.ConstantRate",
                            "init_args": {"rate": 1.0},
                        }
                    },
                ),
                "selection": "UncertainPairs",
            },
            "UncertainPairs: got StochasticGradientDescent, expected an estimator that knows its uncertainty",
        ),
        (
            {
                "oracle": {
                    "class_path": "grpovi_lightning.rewards.online.BradleyTerryOracle",
                    "init_args": {"function": "my_rewards.nothing"},
                }
            },
            "module my_rewards has no 'nothing'",
        ),
    ],
)
def test_a_reward_that_cannot_learn_is_refused_before_anything_is_loaded(refused, settings, expected):
    settings = dict(settings)
    if "estimator" in settings:
        name, arguments = settings["estimator"]
        settings["estimator"] = {"class_path": f"grpovi_lightning.rewards.online.{name}", "init_args": arguments}
    assert expected in refused(lambda config: online_reward(config, **settings))


@pytest.mark.slow
def test_a_run_that_nobody_answers_ends_well_and_goes_on_with_late_answers(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    config = run_config(inputs, tmp_path / "run")
    online_reward(config)
    config["checkpoint"] = {"every_n_train_steps": 2}
    config["trainer"]["max_steps"] = 2
    assert main(["fit", "--config", write_yaml(tmp_path / "run.yaml", config)]) == 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "finished" and any("had no answer after 0 s" in line for line in status["warnings"])

    oracle = tmp_path / "run" / "oracle"
    names = [json.loads(line)["name"] for line in (oracle / "questions" / "00000000.jsonl").read_text().splitlines()]
    (oracle / "answers" / "a.jsonl").write_text("".join(f'{{"name": "{name}", "label": 1}}\n' for name in names))
    config["trainer"]["max_steps"] = 4
    arguments = ["fit", "--config", write_yaml(tmp_path / "run.yaml", config)]
    assert main([*arguments, "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt")]) == 0
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    state = saved["reward._extra_state"]
    assert state["online"]["n_labels"] == len(names) == 2 and state["estimator"]["theta"].any()
