"""Trains GRPOVI under a strategy: sharded_driver.py POLICY REWARD DEVICES STRATEGY RUN...

A run is VARIANT:STEPS:FOLDER, and :CHECKPOINT behind it where it goes on from one. Checkpoints of VARIANT+parts are
folders, into which each process writes its parts.
"""

import sys
from pathlib import Path

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from modules.grpo_runs import HELD_OUT, grpo, prompt_data, quiet, trainer

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.callbacks import ExportModel
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.models import LoRA, PretrainedCausalLM, Sharding
from grpovi_lightning.modules.outcome import outcome_of
from grpovi_lightning.rewards import RewardModel
from grpovi_lightning.strategies import FSDP2Strategy

# Of each, what one process has nothing of, then what all runs have.
VARIANTS = {
    "full": ({}, {}),
    "lora": ({}, {"lora": LoRA(r=4)}),
    "layers": ({"gather": "layers", "reward": "sharded"}, {"prompts_per_micro_batch": 1}),
    "offloaded": ({"reference": "offloaded", "reward": "offloaded"}, {"tokens_per_micro_batch": 100}),
    "replicated": ({"reference": "replicated"}, {"gradient_checkpointing": True}),
}


class Texts(L.Callback):
    """Keeps the completions of each step, by rank."""

    def __init__(self):
        self.texts = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.texts.append(list(outcome_of(outputs).sampled.texts))


def run_variant(policy_folder, reward_folder, devices, strategy, variant, steps, folder, checkpoint=None):
    variant, _, parts = variant.partition("+")
    placed, settings = VARIANTS[variant]
    source = {name: settings[name] for name in ("lora", "gradient_checkpointing") if name in settings}
    module = grpo(
        policy_folder,
        RewardModel(reward_folder),
        policy=PretrainedCausalLM(policy_folder, **source),
        loss=GRPOLoss(beta=0.04),
        adjustment=VarianceIncrease(),
        # AdamW would divide rounding by rounding where a gradient is all but 0.
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        sharding=Sharding(**placed) if strategy == "fsdp2" else Sharding(),
        **{name: value for name, value in settings.items() if name not in source},
    )
    texts = Texts()
    callbacks = texts, ExportModel(folder / "model")
    intervals = {"checkpoint_every": steps, "validate_every": 3, "max_epochs": -1}
    if parts:
        strategy = FSDP2Strategy(save_distributed_checkpoint=True)
    run = trainer(folder, steps, *callbacks, devices=devices, strategy=strategy, **intervals)
    # Five over two processes: one batch more for the first, which the second has to take part in.
    data = prompt_data(
        folder / f"data_{run.global_rank}",
        validation=True,
        prompts_per_step=4,
        held_out_prompts=[*HELD_OUT, "the old house", "a dog"],
    )
    with quiet():
        run.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    torch.save(texts.texts, folder / f"texts_{run.global_rank}.pt")


if __name__ == "__main__":
    policy, reward, devices, strategy, *runs = sys.argv[1:]
    for described in runs:  # in one process a rank: starting them takes longer than the steps
        variant, steps, folder, *checkpoint = described.split(":")
        run_variant(policy, reward, int(devices), strategy, variant, int(steps), Path(folder), *checkpoint)
