"""Time this project's GRPO steps on a workload: python benchmarks/training_step.py DIR --steps 12; see README.md."""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from command import run_command
from torch.optim.lr_scheduler import LambdaLR
from workload import LEAST, Workload, read_workload, step_parser, step_result

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.advantages import GroupAdvantage
from grpovi_lightning.allocator import keep_large_blocks
from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import GRPOModule, UpdateSettings
from grpovi_lightning.rewards import RewardFunction
from grpovi_lightning.rollout import CompiledDecoder, Decoder, GroupDecoder, SamplingConfig

DECODERS: dict[str, type[Decoder]] = {"compiled": CompiledDecoder, "group": GroupDecoder}
NOTHING_BESIDE = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
NOTHING_BESIDE += ["use_distributed_sampler"]


class StepTimes(L.Callback):
    """When each step ended, and the scalars `names` that it logged."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = names  # none by default: reading them would take some of the time that is measured
        self.ends: list[float] = []
        self.scalars: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if self.names:
            logged = trainer.callback_metrics
            self.scalars.append({name: float(logged[name]) for name in self.names})


def train(
    work: Workload,
    steps: int,
    seed: int,
    times: StepTimes,
    decoder: Decoder | None = None,
    reward: RewardFunction | None = None,
) -> dict[str, float]:
    """Train with the settings that TRL's trainer has in trl_step.py; return the scalars of the last step.

    Raises:
        UserError: the checkpoint or the prompts do not do.
    """
    module = GRPOModule(
        policy=PretrainedCausalLM(str(work.folder / "model")),
        reward=reward or RewardFunction(work.reward),
        group_size=work.group_size,
        sampling=SamplingConfig(max_completion_length=work.completion, temperature=work.temperature),
        decoder=decoder,
        compile_passes=isinstance(decoder, CompiledDecoder),
        advantage=GroupAdvantage("group"),
        loss=GRPOLoss(beta=work.beta),
        optimizer=lambda params: torch.optim.AdamW(params, lr=work.learning_rate, weight_decay=0.0, fused=True),
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: 1.0 - step / steps),
        updates=UpdateSettings(num_iterations=work.num_iterations, tokens_per_micro_batch=work.tokens_at_once),
        seed=seed,
    )
    data = PromptDataModule(train=str(work.folder / "prompts.jsonl"), prompts_per_step=work.prompts_per_step, seed=seed)
    gpu = torch.cuda.is_available()
    nothing: dict[str, Any] = dict.fromkeys(NOTHING_BESIDE, False)
    trainer = L.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if gpu else "32-true",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[times],
        **nothing,
    )
    trainer.fit(module, data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def quiet() -> None:
    """Silence Lightning's hints about a bare trainer, which would stand between the lines that are printed."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def run(arguments: argparse.Namespace) -> None:
    """Train and print the JSON line."""
    keep_large_blocks()  # as the command `grpovi` does
    work = read_workload(arguments.directory)
    torch.set_num_threads(arguments.threads)
    quiet()
    times = StepTimes()
    last = train(work, arguments.steps, arguments.seed, times, DECODERS[arguments.decoder]())
    length = last[keys.COMPLETIONS_MEAN_LENGTH]
    print(step_result("grpovi-lightning", work, times.ends, length, last[keys.KL], last[keys.REWARD]))


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status, 2 for arguments or a workload that do not do."""
    parser = step_parser("training_step.py", "Time this project's GRPO steps on a workload.")
    parser.add_argument("--decoder", choices=DECODERS, default="compiled", help="default: compiled")
    return run_command(parser, run, argv, least=LEAST, refused=(UserError,))


if __name__ == "__main__":
    sys.exit(main())
