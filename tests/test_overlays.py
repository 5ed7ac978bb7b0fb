"""A class named by a later file or argument starts from its own defaults, plus what the files wrote for it."""

import pytest
import yaml
from helpers.own_input import run_config, write_yaml

from grpovi_lightning.cli import main

PACKAGE = "grpovi_lightning"


@pytest.fixture
def resolved(inputs, tmp_path, monkeypatch, capsys):
    """Resolves a base, overlays and arguments by `--print_config`."""
    monkeypatch.chdir(inputs)

    def run(*overlays, arguments=(), **model):
        files = [run_config(inputs, tmp_path / "run", **model), *overlays]
        names = [write_yaml(tmp_path / f"{i}.yaml", content) for i, content in enumerate(files)]
        configs = [argument for name in names for argument in ("--config", name)]
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["fit", *configs, *arguments, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)

    return run


def parts(**settings):
    return {"model": {"init_args": settings}}


ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
SGD = {"class_path": "torch.optim.SGD"}


@pytest.mark.parametrize(
    ("overlays", "arguments"),
    [
        ([parts(optimizer=SGD)], []),
        ([], ["--model.init_args.optimizer=torch.optim.SGD"]),
        ([], ["--model.optimizer=torch.optim.SGD"]),
        ([], ["--model.optimizer", '{"class_path": "torch.optim.SGD"}']),
        ([parts(optimizer=SGD), parts(optimizer={"init_args": {"momentum": 0.0}})], []),
        ([parts(optimizer={"class_path": "torch.optim.Adagrad"}), parts(optimizer=SGD)], []),
    ],
)
def test_another_optimizer_has_its_own_weight_decay(resolved, overlays, arguments):
    optimizer = resolved(*overlays, arguments=arguments, optimizer=ADAMW)["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert (optimizer["init_args"]["lr"], optimizer["init_args"]["weight_decay"]) == (1e-3, 0)
    assert set(optimizer["init_args"]) == {
        "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach", "differentiable", "fused"
    }  # fmt: skip


def test_the_optimizer_of_a_single_file_has_its_own_defaults_too(resolved):
    for optimizer in (SGD, SGD | {"init_args": {"lr": 0.1}}):
        found = resolved(optimizer=optimizer)["model"]["init_args"]["optimizer"]["init_args"]
        assert found["weight_decay"] == 0 and found["lr"] == optimizer.get("init_args", {"lr": 1e-3})["lr"]


def test_what_the_files_wrote_stays_where_the_new_class_knows_it(resolved):
    base = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.5, "betas": [0.5, 0.5]}}
    found = resolved(parts(optimizer=SGD), optimizer=base)["model"]["init_args"]["optimizer"]["init_args"]
    assert found["lr"] == 0.5 and "betas" not in found


CHANGES = {
    "loss": (f"{PACKAGE}.losses.GRPOLoss", f"{PACKAGE}.losses.DAPOLoss", "epsilon_high"),
    "lr_scheduler": ("torch.optim.lr_scheduler.LinearLR", "torch.optim.lr_scheduler.ConstantLR", "total_iters"),
    "adjustment": (f"{PACKAGE}.adjustment.VarianceIncrease", f"{PACKAGE}.adjustment.IdentityAdjustment", "ties"),
    "advantage": (f"{PACKAGE}.advantages.GroupAdvantage", f"{PACKAGE}.advantages.LeaveOneOutAdvantage", "scale"),
}


@pytest.mark.parametrize("setting", CHANGES)
def test_any_part_that_changes_its_class_is_what_it_would_be_without_the_old_one(resolved, setting):
    old, new, _ = CHANGES[setting]
    after = resolved(parts(**{setting: {"class_path": new}}), **{setting: {"class_path": old}})
    alone = resolved(**{setting: {"class_path": new}})
    after, alone = (each["model"]["init_args"][setting] for each in (after, alone))
    assert after == alone and after["class_path"] == new


def test_a_model_or_data_of_another_class_has_its_own_defaults(resolved):
    sft = {"class_path": f"{PACKAGE}.modules.SFTModule"}
    data = {"class_path": f"{PACKAGE}.data.DemonstrationDataModule"}
    found = resolved({"model": sft, "data": data})
    assert found["data"]["init_args"]["batch_size"] == 64  # PromptDataModule has no such setting
    assert found["data"]["init_args"]["validation"].endswith("questions.jsonl")
    assert found["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-3
    assert "group_size" not in found["model"]["init_args"]


def test_loggers_and_callbacks_of_another_class_have_their_own_defaults(resolved):
    loggers = "lightning.pytorch.loggers"
    base = {"trainer": {"logger": {"class_path": f"{loggers}.TensorBoardLogger", "init_args": {"save_dir": "a"}}}}
    other = {"trainer": {"logger": {"class_path": f"{loggers}.CSVLogger"}}}
    assert resolved(base, other)["trainer"]["logger"]["init_args"]["name"] == "lightning_logs"
    callbacks = "lightning.pytorch.callbacks"
    base = {"trainer": {"callbacks": [{"class_path": f"{callbacks}.EarlyStopping", "init_args": {"monitor": "a"}}]}}
    other = {"trainer": {"callbacks": [{"class_path": f"{callbacks}.ModelCheckpoint"}]}}
    (found,) = resolved(base, other)["trainer"]["callbacks"]
    assert found["class_path"] == f"{callbacks}.ModelCheckpoint" and found["init_args"]["mode"] == "min"
    assert found["init_args"]["verbose"] is False and "patience" not in found["init_args"]
