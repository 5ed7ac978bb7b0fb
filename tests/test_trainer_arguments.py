"""Every argument of Lightning's Trainer does what it says, or is refused in one line with nothing written."""

import inspect

import lightning as L
import pytest
from helpers.commands import refusal
from helpers.own_input import run_config, write_yaml
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.trainer_arguments import REFUSED, RUN_DEFAULTS, check_arguments, defaults

SUPPORTED = {
    "accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks", "max_steps", "max_time",
    "limit_val_batches", "limit_test_batches", "val_check_interval", "enable_checkpointing", "accumulate_grad_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "plugins", "default_root_dir",
}  # fmt: skip
"""They change what a run does, in the way that they say."""

NEUTRAL = {
    "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "deterministic", "benchmark", "inference_mode",
    "profiler", "detect_anomaly", "sync_batchnorm", "enable_autolog_hparams",
}  # fmt: skip
"""They change what is shown or checked, or how fast it is, and not what is trained."""


def test_every_argument_of_the_trainer_is_known():
    arguments = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    assert [*SUPPORTED, *NEUTRAL, *REFUSED] == list(dict.fromkeys([*SUPPORTED, *NEUTRAL, *REFUSED]))
    assert arguments == SUPPORTED | NEUTRAL | set(REFUSED)
    assert set(RUN_DEFAULTS) <= arguments


def test_the_defaults_and_other_words_for_them_are_allowed():
    check_arguments(defaults() | {"max_steps": 1})
    check_arguments(
        defaults()
        | {"max_steps": 1, "max_epochs": None, "limit_train_batches": 1.0, "overfit_batches": 0}
        | {"check_val_every_n_epoch": None, "val_check_interval": 5}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fast_dev_run", True),
        ("max_epochs", 3),
        ("min_epochs", 1),
        ("min_steps", 2),
        ("limit_train_batches", 2),
        ("limit_train_batches", 1),
        ("limit_train_batches", 0.5),
        ("limit_predict_batches", 1),
        ("overfit_batches", 2),
        ("check_val_every_n_epoch", 2),
        ("num_sanity_val_steps", 2),
        ("use_distributed_sampler", True),
        ("barebones", True),
        ("reload_dataloaders_every_n_epochs", 1),
        ("model_registry", "mine"),
    ],
)
def test_an_argument_that_would_not_do_what_it_says_is_refused(name, value):
    with pytest.raises(UserError, match=rf"^trainer\.{name}: got {value!r}, expected [^:]+: \w"):
        check_arguments(defaults() | {"max_steps": 4, name: value})


def test_each_refused_argument_is_tried_above():
    (mark,) = test_an_argument_that_would_not_do_what_it_says_is_refused.pytestmark
    assert {name for name, _ in mark.args[1]} == set(REFUSED)


@pytest.fixture
def refused(inputs, tmp_path, monkeypatch, capsys):
    """Runs `grpovi fit` with these arguments of the trainer and other keys; returns the one line it printed."""
    monkeypatch.chdir(inputs)

    def run(trainer=(), **others):
        config = run_config(inputs, tmp_path / "run") | others
        config["trainer"] |= dict(trainer)
        line = refusal(capsys, "fit", "--config", write_yaml(tmp_path / "run.yaml", config))
        assert [file.name for file in tmp_path.iterdir()] == ["run.yaml"]
        return line

    return run


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"limit_train_batches": 2}, "trainer.limit_train_batches: got 2, expected None: it would train on the same"),
        (
            {"val_check_interval": 10, "max_steps": 4, "check_val_every_n_epoch": 1},
            "trainer.val_check_interval: got 10, expected at most 4, the steps of the run",
        ),
        ({"val_check_interval": 0}, "trainer.val_check_interval: got 0, expected a number of steps above 0"),
        ({"val_check_interval": -3}, "trainer.val_check_interval: got -3, expected a number of steps above 0"),
        ({"val_check_interval": "00:00:01:00"}, "trainer.val_check_interval: got '00:00:01:00', expected a number"),
        ({"val_check_interval": 0.5}, "val_check_interval"),  # with `check_val_every_n_epoch: null`
        ({"max_steps": 1.5}, "max_steps"),
        ({"max_steps": 0}, "no length: got trainer.max_steps 0"),
        ({"max_steps": -4}, "no length: got trainer.max_steps -4"),
        ({"num_nodes": 0}, "trainer.num_nodes: got 0, expected at least 1"),
        ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches: got 0, expected at least 1"),
        ({"gradient_clip_val": -1.0}, "trainer.gradient_clip_val: got -1.0, expected a finite number of at least 0"),
        ({"log_every_n_steps": -1}, "trainer.log_every_n_steps: got -1, expected a finite number of at least 0"),
        ({"gradient_clip_algorithm": "foo"}, "foo"),
        ({"limit_val_batches": -1}, "invalid value -1 for limit_val_batches"),
        ({"max_time": "soon"}, "'soon'"),
        ({"max_time": {"foo": 1}}, "'foo'"),
        ({"accelerator": "foo"}, "accelerator foo"),
        ({"accelerator": "tpu"}, "accelerator tpu"),
        ({"devices": 0}, "devices 0"),
        ({"devices": -2}, "devices"),
        ({"devices": 99}, "99 processes"),
        ({"devices": "many"}, "devices many"),
        ({"precision": "foo"}, "foo"),
        ({"profiler": "foo"}, "profiler"),
        ({"deterministic": "foo"}, "deterministic"),
    ],
)
def test_values_out_of_range_are_one_line(refused, trainer, said):
    line = refused(trainer)
    assert said in line and len(line) < 700


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_one_line(refused, seed):
    assert refused(seed_everything=seed) == f"seed_everything: got {seed}, expected a whole number from 0 to 4294967295"


@pytest.mark.parametrize("part", ["model", "data"])
def test_a_seed_of_a_part_is_checked_too(inputs, tmp_path, monkeypatch, capsys, part):
    monkeypatch.chdir(inputs)
    config = run_config(inputs, tmp_path / "run")
    config[part]["init_args"]["seed"] = -1
    line = refusal(capsys, "fit", "--config", write_yaml(tmp_path / "run.yaml", config))
    assert line == f"{part}.init_args.seed: got -1, expected a whole number of at least 0"
    assert not (tmp_path / "run").exists()


PACKAGE = "lightning.pytorch.strategies"


@pytest.mark.parametrize(
    "strategy",
    [
        "foo", "fsdp", "fsdp_cpu_offload", "deepspeed", "deepspeed_stage_2", "ddp_spawn", "ddp_notebook", "ddp_fork",
        "xla", {"class_path": f"{PACKAGE}.FSDPStrategy"},
        {"class_path": f"{PACKAGE}.DeepSpeedStrategy"},
        {"class_path": f"{PACKAGE}.DDPStrategy", "init_args": {"start_method": "spawn"}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("devices", [1, 2])
def test_a_strategy_whose_training_is_not_known_to_be_right_is_refused(refused, strategy, devices):
    line = refused({"strategy": strategy, "devices": devices})
    name = strategy if isinstance(strategy, str) else strategy["class_path"].removeprefix(f"{PACKAGE}.")
    name += " whose processes are copies of this one" * (name == "DDPStrategy")
    assert line.startswith(f"trainer.strategy: got {name}, expected one of") and "set `strategy: ddp`" in line


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"tensor_parallel_size": 2}, "tensor_parallel_size: got 2, expected 1"),
        ({"data_parallel_size": 4}, "data_parallel_size: got 4 for 2 processes, expected 2"),
    ],
)
def test_what_sharding_cannot_do_is_refused(refused, own, sizes, said):
    strategy = "grpovi_lightning.strategies.FSDP2Strategy" if own else f"{PACKAGE}.ModelParallelStrategy"
    line = refused({"strategy": {"class_path": strategy, "init_args": sizes}, "devices": 2})
    assert line.startswith(f"trainer.strategy.{said}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": ModelParallelStrategy(), "devices": 2}, "strategy: got ModelParallelStrategy"),
        ({"strategy": DDPStrategy(start_method="spawn"), "devices": 2}, "strategy: got DDPStrategy"),
        ({"strategy": "ddp_spawn", "devices": 2}, "strategy: got"),
        ({"limit_train_batches": 2}, "limit_train_batches: got 2"),
        ({"overfit_batches": 2}, "limit_train_batches: got 2"),
    ],
)
def test_a_trainer_made_in_python_is_refused_before_anything_is_loaded(inputs, settings, said):
    data = PromptDataModule(str(inputs / "questions.jsonl"), prompt_column="question")
    data.trainer = L.Trainer(accelerator="cpu", logger=False, max_steps=1, **settings)
    with pytest.raises(UserError, match=said):
        data.setup("fit")
