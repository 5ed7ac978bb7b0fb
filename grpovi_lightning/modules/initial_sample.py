"""Completions of the initial policy, over which rewards are normalised before the first step."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpovi_lightning.distributed import batches_of_rank, world_size
from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import INITIAL_STEP, initial_indices, resolve_seed
from grpovi_lightning.rewards import NormalisedReward, Reward
from grpovi_lightning.rollout import RolloutEngine
from grpovi_lightning.structures import Rollout
from grpovi_lightning.trainer_state import data_of

NORMALISATION_FILE = "reward_normalisation.json"
"""In the run's folder: name of each normalised reward -> mean and standard deviation, and of how many completions."""


def normalised_parts(reward: Reward) -> list[NormalisedReward]:
    """Return the normalised rewards that a reward is or holds."""
    return [part for part in reward.modules() if isinstance(part, NormalisedReward)]


def check_initial_sample(reward: Reward, n_rows: int) -> None:
    """Raise `UserError` where the training table, of `n_rows`, has too few prompts for a normalised reward."""
    for part in normalised_parts(reward):
        if n_rows < part.prompts:
            raise UserError(
                f"{part.name}: got prompts {part.prompts}, but the train table has {n_rows} rows; set `prompts` to at "
                "most that"
            )


def fit_normalisation(module: Any) -> None:
    """Fit the normalised rewards of a module that samples, where a checkpoint has not brought their numbers.

    The policy is the initial one then, whatever comes first: an evaluation or the first step.
    """
    unknown = [part for part in normalised_parts(module.reward) if part.scale is None]
    for part in unknown:
        part.fit(_completions(module, part.prompts, part.completions))
    if unknown and module.trainer.state.fn == "fit" and module.trainer.is_global_zero:
        _write(module, normalised_parts(module.reward))


def _completions(module: Any, n_prompts: int, n_completions: int) -> Iterator[Rollout]:
    """Sample on this rank's part of the prompts, as many completions at once as a training step has."""
    data, trainer = data_of(module), module.trainer
    seed, table = resolve_seed(module.seed), data.tables["train"]
    check_initial_sample(module.reward, len(table))  # again: prompts that are too long may have been left out of it
    # Only the normalised rewards score these, so no other is asked about them early.
    engine = RolloutEngine(module.engine.sampling, module.engine.decoder)
    rows = initial_indices(seed, len(table), n_prompts)
    at_once = max(1, data.batch_size * module.group_size // (world_size() * n_completions))
    for batch in batches_of_rank(len(rows), at_once, trainer.global_rank, trainer.world_size):
        prompts = data.collate([table[rows[i]] for i in batch]).to(module.device)
        with trainer.precision_plugin.forward_context():
            rollout = engine.generate(module.policy, prompts, n_completions, seed, INITIAL_STEP)
        yield rollout


def _write(module: Any, parts: list[NormalisedReward]) -> None:
    folder = Path(module.trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        part.name: dict(zip(("mean", "std"), part.scale or (), strict=True))
        | {"prompts": part.prompts, "completions": part.completions}
        for part in parts
    }
    (folder / NORMALISATION_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, numbers in content.items():
        module.print(f"{name}: rewards are shifted by {numbers['mean']:.6g} and divided by {numbers['std']:.6g}")
