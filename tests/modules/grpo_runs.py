"""Short GRPO runs through a real Lightning trainer on the CPU, and what they logged."""

import contextlib
import copy
import itertools
import json
import os
import warnings
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpovi_lightning.callbacks import EvaluateAtStart, RunCheckpoint
from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.modules.outcome import outcome_of
from grpovi_lightning.modules.update_settings import UpdateSettings
from grpovi_lightning.rewards import RewardFunction
from grpovi_lightning.rollout import SamplingConfig

PROMPTS = [
    "write about the red fox and the boat , happy , ten words",
    "the old house",
    "write about a dog",
    "a sad cat",
    "the river runs near the small green tree",
    "a blue boat finds the fox",
    "ten happy words",
    "the dog sleeps",
]
TIMES = ("step_time", "train_seconds", "throughput", "update_seconds")
EPOCH = "epoch"  # Lightning's own count, which nothing here reads


def graded(prompts, completions, completion_ids, **columns):
    """A continuous reward: how alphabetical the words are, and how near the length is to six tokens."""
    scores = []
    for text, ids in zip(completions, completion_ids, strict=True):
        words = text.split()
        rising = sum(a < b for a, b in itertools.pairwise(words)) / max(len(words) - 1, 1)
        scores.append(rising - 0.1 * abs(len(ids) - 6) + 0.01 * (sum(ids) % 7))
    return scores


def binary(prompts, completions, completion_ids, **columns):
    """0 or 1."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def constant(prompts, completions, completion_ids, **columns):
    """The same for all."""
    return [0.5] * len(completions)


class Recorder(L.Callback):
    """Keeps what each training step returned, the prompts of each step, and the weights after it."""

    def __init__(self):
        self.outputs, self.prompts, self.weights, self.before = [], [], [], None

    def on_train_start(self, trainer, pl_module):
        self.before = weights(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.outputs.append(copy.deepcopy(outcome_of(outputs)))
        self.prompts.append(batch)
        self.weights.append(weights(pl_module))


def weights(module):
    return {name: p.detach().clone() for name, p in module.policy.model.named_parameters()}


def grpo(policy_folder, reward=graded, **settings):
    """A module of the small kind that the tests here train; settings of the updates may stand among the others."""
    updates = {field.name: settings.pop(field.name) for field in fields(UpdateSettings) if field.name in settings}
    defaults = {
        "policy": PretrainedCausalLM(str(policy_folder)),
        "reward": RewardFunction(reward) if callable(reward) and not isinstance(reward, torch.nn.Module) else reward,
        "group_size": 4,
        "sampling": SamplingConfig(max_completion_length=9, temperature=0.9),
        "loss": GRPOLoss(beta=0.04),
        "updates": UpdateSettings(**updates),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01),
        "seed": 1,
    }
    return GRPOModule(**defaults | settings)


HELD_OUT = ("the fox", "write a happy cat", "ten dog")


def prompt_data(folder, validation=False, prompts_per_step=3, held_out_prompts=HELD_OUT, **settings):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "answer": str(i)}) + "\n" for i, p in enumerate(PROMPTS)))
    held_out = folder / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in held_out_prompts))
    return PromptDataModule(
        str(file),
        str(held_out) if validation else None,
        prompts_per_step=prompts_per_step,
        validation_batch_size=2,
        seed=1,
        **settings,
    )


def trainer(folder, max_steps, *callbacks, checkpoint_every=None, validate_every=None, **settings):
    callbacks = list(callbacks)
    if validate_every:
        callbacks.append(EvaluateAtStart())
    if checkpoint_every:
        callbacks.append(
            RunCheckpoint(
                dirpath=Path(folder) / "checkpoints",
                filename="{step}",
                every_n_train_steps=checkpoint_every,
                save_top_k=-1,
                save_last="link",
                enable_version_counter=False,
            )
        )
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "max_steps": max_steps,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "enable_checkpointing": bool(checkpoint_every),
            "callbacks": callbacks,
            "default_root_dir": str(folder),
            "logger": TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False),
            "val_check_interval": validate_every,  # counted over the run, not within an epoch
            "check_val_every_n_epoch": None if validate_every else 1,
        }
        | settings
    )


def train(module, folder, max_steps=3, *callbacks, validate_every=None, ckpt_path=None, data=None, **settings):
    """Trains for some steps; returns what was recorded."""
    recorder = Recorder()
    with quiet():
        trainer(folder, max_steps, recorder, *callbacks, validate_every=validate_every, **settings).fit(
            module,
            data or prompt_data(Path(folder) / "data", validation=bool(validate_every)),
            ckpt_path=ckpt_path,
            weights_only=True,
        )
    return recorder


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")
        yield


def scalars(folder, timings=False):
    """tag -> {step: value}, from the event files; of a repeated step the latest."""
    found = defaultdict(dict)
    for file in sorted(Path(folder).glob("events.out.tfevents.*"), key=os.path.getmtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if tag != EPOCH and (timings or not any(name in tag for name in TIMES)):
                found[tag] |= {event.step: event.value for event in events.Scalars(tag)}
    return dict(found)


def texts(folder):
    """tag -> {step: text}."""
    found = defaultdict(dict)
    for file in Path(folder).glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file), size_guidance={"tensors": 0}).Reload()
        for tag in events.Tags()["tensors"]:
            found[tag] |= {e.step: e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)}
    return dict(found)


def completion_tokens(outcome):
    """B lists of tokens, padding left out."""
    rollout = outcome.rollout
    return [ids[kept].tolist() for ids, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]


def identical(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def relative_difference(first, second):
    assert first.keys() == second.keys()
    difference = torch.cat([(first[name] - second[name]).flatten() for name in first]).norm()
    return float(difference / torch.cat([value.flatten() for value in second.values()]).norm())
