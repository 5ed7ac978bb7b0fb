"""Rewards with settings and the evaluation, from YAML alone."""

import pytest
from helpers.commands import refusal
from helpers.own_input import run_config, write_yaml
from modules.grpo_runs import scalars

from grpovi_lightning.cli import main

FUNCTIONS = """
import asyncio

async def near_length(completion_ids, length, trainer_state):
    await asyncio.sleep(0)
    return [1.0 - abs(len(ids) - length) / 8 + 0 * trainer_state.global_step for ids in completion_ids]

def shorter_than(length):
    def shorter(completion_ids, **columns):
        return [float(len(ids) < length) for ids in completion_ids]
    return shorter

def has_digit(completions, answer):
    return [float(any(c.isdigit() for c in text)) for text in completions]
"""
REWARD = "grpovi_lightning.rewards.RewardFunction"
SETTINGS = {
    "reward": {
        "class_path": "grpovi_lightning.rewards.CompositeReward",
        "init_args": {
            "rewards": [
                {
                    "class_path": REWARD,
                    "init_args": {"function": "my_functions.near_length", "name": "near", "kwargs": {"length": 5}},
                },
                {"class_path": REWARD, "init_args": {"factory": "my_functions.shorter_than", "kwargs": {"length": 7}}},
            ],
        },
    },
    "evaluation": {
        "samples": 2,
        "temperature": 0.7,
        "greedy": True,
        "pass_at": [1, 2],
        "metrics": {
            "digit": "my_functions.has_digit",
            "short": {
                "class_path": REWARD,
                "init_args": {"factory": "my_functions.shorter_than", "kwargs": {"length": 3}},
            },
        },
    },
}
LOGGED = {
    *("reward", "frac_unscorable", "entropy", "kl", "completions/mean_length", "completions/clipped_ratio"),
    *(f"rewards/{name}/{kind}" for name in ("near", "shorter") for kind in ("mean", "std")),
    *(f"pass_at_{k}/{name}" for k in (1, 2) for name in ("rewards/near", "rewards/shorter", "digit", "short")),
    *("digit", "short", "num_tokens", "train_seconds", "greedy/reward", "greedy/digit", "greedy/short"),
    *("greedy/frac_unscorable", "greedy/completions/mean_length", "greedy/completions/clipped_ratio"),
    *(f"greedy/rewards/{name}/{kind}" for name in ("near", "shorter") for kind in ("mean", "std")),
}


@pytest.fixture
def folder(inputs, tmp_path, monkeypatch):
    """Where the command runs; the functions lie there."""
    (tmp_path / "my_functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def config(inputs, folder):
    made = run_config(inputs, folder / "run", **SETTINGS)
    made["trainer"] |= {"max_steps": 2, "val_check_interval": 1}
    return made


def printed(capsys):
    """name -> number, as `validate` and `test` print them."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {words[0]: float(words[1]) for words in lines if words and words[0].startswith(("eval/", "test/"))}


def test_the_whole_evaluation_is_logged_and_printed(config, folder, capsys):
    file = write_yaml(folder / "run.yaml", config)
    assert main(["fit", "--config", file]) == 0
    logged = {name: values[2] for name, values in scalars(folder / "run", timings=True).items() if "eval/" in name}
    assert logged.keys() == {f"eval/{name}" for name in LOGGED}
    capsys.readouterr()
    last = str(folder / "run" / "checkpoints" / "last.ckpt")
    for command, prefix in (("validate", "eval"), ("test", "test")):
        test = ["--data.init_args.test", config["data"]["init_args"]["validation"]] * (command == "test")
        assert main([command, "--config", file, "--ckpt_path", last, *test]) == 0
        wanted = {name.replace("eval", prefix, 1): value for name, value in logged.items()}
        assert printed(capsys) == pytest.approx(wanted, rel=2e-5)


def test_the_configuration_that_a_run_wrote_is_one_to_start_from(config, folder):
    assert main(["fit", "--config", write_yaml(folder / "run.yaml", config)]) == 0
    again = ["--config", str(folder / "run" / "config.yaml"), "--trainer.default_root_dir", str(folder / "again")]
    assert main(["fit", *again, "--checkpoint.dirpath", str(folder / "again" / "checkpoints")]) == 0
    again, first = scalars(folder / "again"), scalars(folder / "run")
    assert repr(again) == repr(first), "as text, in which not-a-number equals itself"


def test_named_sets_are_printed_each(config, folder, capsys):
    file = config["data"]["init_args"]["validation"]
    config["data"]["init_args"]["validation"] = {"all": file, "first": {"path": file, "max_rows": 3}}
    config["model"]["init_args"]["evaluation"] = {"samples": 2, "pass_at": [2]}
    assert main(["validate", "--config", write_yaml(folder / "run.yaml", config)]) == 0
    found = printed(capsys)
    assert found["eval/entropy"] == found["eval/all/entropy"] != found["eval/first/entropy"]
    assert {name.removeprefix("eval/all/") for name in found if name.startswith("eval/all/")} == {
        name.removeprefix("eval/first/") for name in found if name.startswith("eval/first/")
    }


def reward(config, **settings):
    config["model"]["init_args"]["reward"] = {"class_path": REWARD, "init_args": settings}


def data(config, **settings):
    config["data"]["init_args"] |= settings


def evaluation(config, **settings):
    config["model"]["init_args"]["evaluation"] = settings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: reward(c, function="my_functions.near_length", kwargs={"lenght": 5}),
            "reward function near_length: kwargs has 'lenght', which it does not take by name, expected some of length",
        ),
        (
            lambda c: reward(c, function="my_functions.has_digit", kwargs={"answer": 5}),
            "reward function has_digit: kwargs has 'answer', which is also a column of the train table",
        ),
        (lambda c: reward(c, factory="my_functions.shorter_than"), "shorter_than raised TypeError: "),
        (lambda c: reward(c), "got function None and factory None, expected one of the two"),
        (
            lambda c: reward(c, function="my_functions.shorter_than", kwargs={"length": 5}),
            "takes none of prompts, completions, completion_ids, answer, so it cannot score completions",
        ),
        (lambda c: evaluation(c, samples=0), "evaluation.samples: got 0, expected at least 1"),
        (lambda c: evaluation(c, pass_at=[2]), "evaluation.pass_at: got [2] with samples 1"),
        (lambda c: evaluation(c, temperature=0.0), "evaluation.temperature: got 0.0, expected a number above 0"),
        (lambda c: evaluation(c, metrics={"kl": "my_functions.has_digit"}), "evaluation.metrics: got the name 'kl'"),
        (
            lambda c: data(c, validation={"greedy": c["data"]["init_args"]["validation"]}),
            "data.validation: got the name 'greedy', expected a word",
        ),
        (lambda c: evaluation(c, metrics={"x": "my_functions.nothing"}), "my_functions has no 'nothing'"),
        (
            lambda c: (
                evaluation(c, metrics={"x": "my_functions.has_digit"}),
                c["data"]["init_args"].update(columns=[]),
            ),
            "reward function x needs the argument 'answer', but the columns of the validation table are none",
        ),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_written(config, folder, capsys, change, said):
    change(config)
    assert said in refusal(capsys, "fit", "--config", write_yaml(folder / "run.yaml", config))
    assert not (folder / "run").exists()
