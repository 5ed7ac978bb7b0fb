"""Trains three GRPO steps over `devices` processes and saves the weights: python ddp_driver.py POLICY OUT DEVICES."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from modules.grpo_runs import grpo, prompt_data, quiet, trainer, weights

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.advantages import GroupAdvantage


def main() -> None:
    policy_folder, folder, devices = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    module = grpo(
        policy_folder,
        adjustment=VarianceIncrease(),
        advantage=GroupAdvantage("batch"),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        prompts_per_micro_batch=1,
    )
    settings = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    run = trainer(folder, 3, validate_every=3, **settings)
    with quiet():
        run.fit(module, prompt_data(folder / f"data_{run.global_rank}", validation=True, prompts_per_step=4))
    state = {"weights": weights(module), "range": [module.adjustment.range.lower, module.adjustment.range.upper]}
    torch.save(state, folder / f"weights_{run.global_rank}.pt")


if __name__ == "__main__":
    main()
