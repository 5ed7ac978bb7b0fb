"""One small run of every kind of module: what is trained, on which rows, and how it is started and continued."""

import json
from pathlib import Path

import torch
from modules.grpo_runs import graded, grpo, quiet, trainer

from grpovi_lightning.callbacks import ExportModel, RunStatus
from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule, PromptDataModule
from grpovi_lightning.models import LoRA, PretrainedCausalLM
from grpovi_lightning.modules import OnePassRewardModule, RewardModelModule, SFTModule
from grpovi_lightning.rewards.online import BradleyTerryOracle, FeatureModel, LinearReward, OnlineLearning, RandomPairs
from grpovi_lightning.rollout import SamplingConfig

PROMPTS = ["write about the fox", "a cat", "the old house in red", "ten words", "the river", "a boat and a dog"]
SIDES = {"completion": "the fox", "chosen": "the happy fox sings", "rejected": "the sad dog sees it"}


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def with_lora(policy):
    return PretrainedCausalLM(str(policy), lora=LoRA(r=4, lora_alpha=8.0))


def learning(policy):
    """A linear reward that learns at every step."""
    online = OnlineLearning(BradleyTerryOracle(graded, 10.0), RandomPairs(), every_n_steps=1, pairs_per_round=3)
    return LinearReward(FeatureModel(str(policy)), online=online)


SHORT = SamplingConfig(max_completion_length=4, temperature=0.9)
KINDS = {
    "sft": lambda policy, reward: SFTModule(with_lora(policy), adam),
    "reward model": lambda policy, reward: RewardModelModule(str(reward), optimizer=adam),
    "reward head": lambda policy, reward: RewardModelModule(str(reward), head_only=True, optimizer=adam),
    "one pass": lambda policy, reward: OnePassRewardModule(FeatureModel(str(policy))),
    "grpo": lambda policy, reward: grpo(policy, policy=with_lora(policy), sampling=SHORT),
    "grpo with a reward that learns": lambda policy, reward: grpo(
        policy, learning(policy), num_iterations=2, sampling=SHORT
    ),
}


def rows(kind, folder):
    """The data module of a kind; every table has the columns of all of them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in (("train", PROMPTS), ("validation", PROMPTS[:3])):
        lines = [json.dumps({"prompt": prompt} | SIDES) + "\n" for prompt in prompts]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    files = [str(folder / f"{name}.jsonl") for name in ("train", "validation")]
    if kind.startswith("grpo"):
        return PromptDataModule(*files, prompts_per_step=2, validation_batch_size=2, seed=1)
    data = DemonstrationDataModule if kind.startswith("sft") else PreferenceDataModule
    return data(*files, batch_size=2, validation_batch_size=2, seed=1)


def fit(kind, module, folder, steps, *callbacks, ckpt_path=None):
    """Trains for `steps` batches with status and export, saving and evaluating after every second one."""
    folder, updates = Path(folder), getattr(module, "updates_per_rollout", 1)
    callbacks = (*callbacks, ExportModel(folder / "model"), RunStatus(folder, 1))
    every = {"validate_every": 2, "checkpoint_every": 2 * updates, "max_epochs": -1}
    with quiet():
        trainer(folder, steps * updates, *callbacks, **every).fit(
            module, rows(kind, folder / "data"), ckpt_path=ckpt_path, weights_only=True
        )
    return module


def checkpoint(module, folder, step):
    """The checkpoint after so many batches."""
    return Path(folder) / "checkpoints" / f"step={step * getattr(module, 'updates_per_rollout', 1)}.ckpt"
