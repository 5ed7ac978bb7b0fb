"""Trains three GRPO steps of every variant and saves the weights: ddp_driver.py POLICY OUT DEVICES."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.every_class import ADJUSTMENTS, ADVANTAGES
from modules.grpo_runs import PROMPTS, graded, grpo, prompt_data, quiet, trainer, weights

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.advantages import GroupAdvantage
from grpovi_lightning.losses import (
    BNPOLoss,
    DAPOLoss,
    EntropyBonus,
    GRPOLoss,
    GSPOLoss,
    HighEntropyTokens,
    TruncatedImportanceSampling,
)
from grpovi_lightning.rewards import CompositeReward, RewardFunction
from grpovi_lightning.rewards.online import (
    BradleyTerryOracle,
    FeatureModel,
    LinearReward,
    OnlineLearning,
    UncertainPairs,
)
from grpovi_lightning.rollout import SamplingConfig
from grpovi_lightning.selection import (
    DynamicResampling,
    HistorySkipping,
    MaxVarianceSelection,
    RandomSelection,
    VarianceCurriculum,
)


def half_equal(prompts, completions, completion_ids, **columns):
    """Equal rewards for half of the prompts, so that a rank can have nothing to learn from."""
    scores = graded(prompts, completions, completion_ids)
    return [0.5 if prompt in PROMPTS[1::2] else score for prompt, score in zip(prompts, scores, strict=True)]


def learning(policy_folder):
    """A reward that learns from each step; the ranks choose, ask and learn together."""
    oracle = BradleyTerryOracle(graded, 10.0)
    online = OnlineLearning(oracle, UncertainPairs(), every_n_steps=1, pairs_per_round=3)
    linear = LinearReward(FeatureModel(policy_folder), online=online)
    return CompositeReward([linear, RewardFunction(graded, name="gold")], [1.0, 0.1])


def unscorable(prompts, completions, completion_ids, **columns):
    """No reward for completions whose first token is even; the same on any rank."""
    scores = graded(prompts, completions, completion_ids)
    return [None if ids[0] % 3 == 0 else score for ids, score in zip(completion_ids, scores, strict=True)]


def bounded(prompts, completions, completion_ids, **columns):
    """Rewards within [0, 1], for which every advantage is defined, a fifth of them missing."""
    scores = torch.tensor(graded(prompts, completions, completion_ids)).sigmoid().tolist()
    return [None if sum(ids) % 5 == 0 else score for ids, score in zip(completion_ids, scores, strict=True)]


VARIANTS = {
    "one micro-batch": {"loss": GRPOLoss(beta=0.04)},
    "two micro-batches": {"loss": GRPOLoss(beta=0.04), "prompts_per_micro_batch": 1},
    "token budget": {
        "loss": DAPOLoss(),
        "tokens_per_micro_batch": 200,
        "mask_truncated_completions": True,
        "sampling": SamplingConfig(max_completion_length=30, temperature=0.9),
    },
    "zero-advantage groups": {"loss": BNPOLoss(), "reward": half_equal, "skip_zero_advantage_groups": True},
    "unscorable": {"loss": BNPOLoss(beta=0.04), "reward": unscorable, "prompts_per_micro_batch": 1},
    "resampling": {"loss": GRPOLoss(beta=0.04), "reward": half_equal, "resampling": DynamicResampling(1)},
    "selection": {"loss": BNPOLoss(beta=0.04), "reward": unscorable, "selection": MaxVarianceSelection(3)},
    "random selection": {"loss": GRPOLoss(beta=0.04), "selection": RandomSelection(3)},
    "curriculum": {"loss": DAPOLoss(), "reward": half_equal, "resampling": VarianceCurriculum(0.01, 2, 0.5)},
    "skipping": {"loss": GRPOLoss(beta=0.04), "reward": half_equal, "resampling": HistorySkipping(0.3, 0.1)},
    "minibatches": {"loss": GSPOLoss(), "num_iterations": 2, "num_minibatches": 2},
    "learning": {"loss": GRPOLoss(beta=0.04), "reward": learning},
    "entropies": {
        "loss": EntropyBonus(GRPOLoss(beta=0.04), entropy_coef=0.05),
        "token_selection": HighEntropyTokens(0.3),
        "prompts_per_micro_batch": 1,
        "num_minibatches": 2,
    },
    "correction": {"loss": GRPOLoss(beta=0.04), "importance_sampling": TruncatedImportanceSampling()},
}
# Every class of the two rooms, as it is found there. Two processes take them in micro-batches of one prompt.
EVERY_CLASS = {f"adjustment {name}": {"adjustment": make} for name, make in ADJUSTMENTS.items()}
EVERY_CLASS |= {f"advantage {name}": {"advantage": make, "adjustment": None} for name, make in ADVANTAGES.items()}
SETTINGS = {
    "loss": BNPOLoss(),
    "reward": bounded,
    "sampling": SamplingConfig(max_completion_length=30, temperature=0.9),
}
VARIANTS |= {name: SETTINGS | made for name, made in EVERY_CLASS.items()}


def run_variant(policy_folder: str, folder: Path, devices: int, variant: str) -> None:
    settings = {"adjustment": VarianceIncrease, "advantage": lambda: GroupAdvantage("batch")} | VARIANTS[variant]
    reward = settings.pop("reward", graded)
    made = {name: make and make() for name in ("adjustment", "advantage") for make in (settings.pop(name),)}
    if variant in EVERY_CLASS and devices > 1:
        made["prompts_per_micro_batch"] = 1
    module = grpo(
        policy_folder,
        learning(policy_folder) if reward is learning else reward,
        # One step has to be seen also where advantages are not scaled.
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3 if variant in EVERY_CLASS else 0.1),
        **made,
        **settings,
    )
    steps = (1 if variant in EVERY_CLASS else 3) * module.updates_per_rollout
    every = None if variant in EVERY_CLASS else 3
    run = trainer(folder, steps, validate_every=every, devices=devices, strategy="ddp" if devices > 1 else "auto")
    spare = 4 if module.resampling.needs_spare else 0
    data = prompt_data(
        folder / f"data_{run.global_rank}", validation=bool(every), prompts_per_step=4, spare_prompts_per_step=spare
    )
    with quiet():
        run.fit(module, data)
    state = {"weights": weights(module), "adjustment": module.adjustment.state_dict()}
    torch.save(state, folder / f"weights_{run.global_rank}.pt")


if __name__ == "__main__":
    for name in VARIANTS:  # in one process a rank: starting them takes longer than the steps
        run_variant(sys.argv[1], Path(sys.argv[2]) / name, int(sys.argv[3]), name)
