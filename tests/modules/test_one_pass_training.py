"""The one-pass optimizer in real Lightning runs of a reward model."""

import json

import lightning as L
import numpy as np
import pytest
import torch
from helpers.own_input import write_yaml
from modules.grpo_runs import identical, quiet, scalars, trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grpovi_lightning.cli import main
from grpovi_lightning.data import PreferenceDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.modules import RewardModelModule
from grpovi_lightning.rewards.online.optimizer import OnePassOptimizer

PROMPTS = ["write about the fox", "a cat", "the old house in red", "ten words", "the river", "a boat and a dog"]
PAIRS = [(p, f"the happy {w} sings", f"the sad {w} sees it") for p in PROMPTS for w in ("fox", "dog", "cat", "tree")]
BOTH = pytest.mark.parametrize("head_only", [True, False], ids=["head only", "full model"])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name, pairs in (("train", PAIRS), ("validation", PAIRS[::3])):
        rows = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))) + "\n" for pair in pairs]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return [str(folder / f"{name}.jsonl") for name in ("train", "validation")]


class Watch(L.Callback):
    """Keeps the batches, and each trained parameter's gradient as it stands before clipping."""

    def __init__(self):
        self.batches, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)


def one_pass(folder, head_only, total_steps=20, lr=1.0, lr_scheduler=None):
    return RewardModelModule(
        str(folder),
        head_only=head_only,
        centering_coefficient=0.1,
        optimizer=lambda params: OnePassOptimizer(params, lr=lr, total_steps=total_steps),
        lr_scheduler=lr_scheduler,
    )


def fit(module, folder, files, steps, *callbacks, ckpt_path=None, **settings):
    data = PreferenceDataModule(*files, batch_size=8, validation_batch_size=8, seed=1)
    with quiet():
        trainer(folder, steps, *callbacks, **settings).fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module


def features(folder, prompts, completions):
    """[b, D] float64, what the head of a classifier reads: each text by itself, without padding."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = [*tokenizer(prompt)["input_ids"], *tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        rows.append(model.model(torch.tensor([ids])).last_hidden_state[0, -1].detach().double().numpy())
    return np.stack(rows), model.score.weight.detach().double().numpy()[0]


def three_steps_of_conjugate_gradient(matrix, b):
    x, r = np.zeros_like(b), b
    d = r
    for _ in range(3):
        alpha = r @ r / (d @ matrix @ d)
        x, after = x + alpha * d, r - alpha * matrix @ d
        d, r = after + (after @ after) / (r @ r) * d, after
    return x


@pytest.mark.parametrize("clip", [None, 0.05])
def test_an_update_of_the_head_is_that_of_numpy_on_the_features(reward_folder, files, tmp_path, clip):
    watch = Watch()
    module = fit(one_pass(reward_folder, True), tmp_path, files, 1, watch, gradient_clip_val=clip)
    batch = watch.batches[0]
    chosen, theta = features(reward_folder, batch["prompt"], batch["chosen"])
    rejected, _ = features(reward_folder, batch["prompt"], batch["rejected"])

    z, total = chosen - rejected, chosen + rejected
    p = 1 / (1 + np.exp(-z @ theta))
    gradient = (z.T @ (p - 1) + 0.1 * 2 * total.T @ (total @ theta)) / len(z)
    matrix = ((z.T * (p * (1 - p))) @ z + 0.1 * 2 * total.T @ total) / len(z) + 0.8 / 20 * np.eye(len(theta))
    norm = np.linalg.norm(gradient)
    assert norm > 0.1  # so that 0.05 clips
    clipped = gradient if clip is None else gradient * clip / norm

    np.testing.assert_allclose(watch.gradients[0][0][0], gradient, rtol=0, atol=1e-5 * norm)
    expected = theta - three_steps_of_conjugate_gradient(matrix, clipped)
    np.testing.assert_allclose(module.model.score.weight.detach()[0], expected, rtol=0, atol=1e-5)


@BOTH
def test_training_lowers_the_loss_and_gives_the_same_bits_twice(policy_folder, files, tmp_path, head_only):
    settings = {"validate_every": 20, "gradient_clip_val": 1.0}
    first, again = (
        fit(one_pass(policy_folder, head_only, lr=0.3), tmp_path / name, files, 20, **settings)
        for name in ("first", "again")
    )
    logged = scalars(tmp_path / "first")

    assert logged["eval/loss"][0] == pytest.approx(np.log(2))
    assert logged["eval/loss"][20] < 0.2
    assert logged["eval/pair_accuracy"][20] == 1.0
    assert identical(first.state_dict(), again.state_dict())
    assert scalars(tmp_path / "again") == logged
    before = AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=1).model.state_dict()
    assert identical(before, first.model.model.state_dict()) == head_only


@BOTH
def test_a_resumed_run_is_the_run_that_was_never_stopped(reward_folder, files, tmp_path, head_only):
    def module():
        return one_pass(
            reward_folder,
            head_only,
            total_steps=4,
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=6),
        )

    settings = {"validate_every": 3, "checkpoint_every": 3, "max_epochs": -1, "gradient_clip_val": 1.0}
    straight = fit(module(), tmp_path / "straight", files, 6, **settings)
    fit(module(), tmp_path / "stopped", files, 3, **settings)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    resumed = fit(module(), tmp_path / "stopped", files, 6, ckpt_path=last, **settings)

    assert identical(straight.state_dict(), resumed.state_dict())
    assert scalars(tmp_path / "stopped") == scalars(tmp_path / "straight")
    for run in (straight, resumed):
        optimizer = run.trainer.optimizers[0]
        assert optimizer.n_updates == 6
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_mixed_precision_trains(policy_folder, files, tmp_path):
    settings = {"validate_every": 20, "gradient_clip_val": 1.0, "precision": "bf16-mixed"}
    fit(one_pass(policy_folder, False, lr=0.3), tmp_path, files, 20, **settings)

    logged = scalars(tmp_path)["eval/loss"]
    assert logged[20] < 0.5 * logged[0]


def test_accumulated_batches_are_refused(reward_folder, files, tmp_path):
    with pytest.raises(UserError, match="accumulate_grad_batches: 1"):
        fit(one_pass(reward_folder, True), tmp_path, files, 2, accumulate_grad_batches=2)


@pytest.fixture
def config(policy_folder, files, tmp_path):
    train, validation = files
    return {
        "seed_everything": 1,
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "accelerator": "cpu",
            "max_steps": 8,
            "gradient_clip_val": 1.0,
            "val_check_interval": 8,
            "check_val_every_n_epoch": None,
            "enable_progress_bar": False,
        },
        "model": {
            "class_path": "grpovi_lightning.modules.RewardModelModule",
            "init_args": {
                "path": str(policy_folder),
                "head_only": True,
                "optimizer": {
                    "class_path": "grpovi_lightning.rewards.online.optimizer.OnePassOptimizer",
                    "init_args": {"lr": 1.0, "total_steps": 8},
                },
            },
        },
        "data": {
            "class_path": "grpovi_lightning.data.PreferenceDataModule",
            "init_args": {"train": train, "validation": validation, "batch_size": 8},
        },
    }


def test_it_is_chosen_in_yaml(config, tmp_path):
    assert main(["fit", "--config", write_yaml(tmp_path / "run.yaml", config)]) == 0

    logged = scalars(tmp_path / "run")["eval/loss"]
    assert logged[8] < 0.8 * logged[0]
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").score.weight
    assert head.abs().max() > 0


def test_a_wrong_setting_in_yaml_is_one_line(config, tmp_path, capsys):
    config["model"]["init_args"]["optimizer"]["init_args"]["total_steps"] = 0

    assert main(["fit", "--config", write_yaml(tmp_path / "run.yaml", config)]) == 2

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpovi: error: ")]
    assert lines == ["grpovi: error: one-pass optimizer total_steps: got 0, expected at least 1"]
