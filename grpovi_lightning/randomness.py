"""Randomness as pure functions of their coordinates, so that no generator state has to be kept.

A rollout depends on (weights, prompt, seed, step) alone: not on the batch a prompt is in, the order of
the batch, the number of processes or a resumed run. Two arms of a study see common random numbers.
"""

import os

import numpy as np
import torch
from torch import Tensor

from grpovi_lightning.errors import UserError

# First word of the key: streams for different uses never meet.
_SAMPLING, _ORDER, _MINIBATCHES, _SPARE, _SELECTION, _LABELS = 0, 1, 2, 3, 4, 5

HELD_OUT_STEP = 1 << 40
"""The step that held-out sampling passes: one stream for every evaluation, far from any training step."""


def resolve_seed(seed: int | None) -> int:
    """Returns `seed`, or the run's global seed as set by `lightning.seed_everything`.

    Raises:
        UserError: neither is set. A comparison without a seed cannot be repeated.
    """
    if seed is not None:
        return seed
    value = os.environ.get("PL_GLOBAL_SEED")
    if value is None:
        raise UserError("no seed: got none, expected an integer; add `seed_everything: 1` to the YAML")
    return int(value)


def sampling_uniforms(seed: int, step: int, prompt_indices: Tensor, group_size: int, length: int) -> Tensor:
    """One uniform number per token position of every completion.

    The stream of a completion is seeded by (seed, step, prompt index, completion index), and a longer
    `length` extends it without changing its beginning.

    Args:
        seed: the run's seed.
        step: the policy step; held-out evaluation passes a constant, to compare steps on equal terms.
        prompt_indices: [P] stable number of each prompt.
        group_size: G completions a prompt.
        length: T token positions.

    Returns:
        [P * G, T] float64 in [0, 1), group-major, on the CPU.
    """
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence([_SAMPLING, seed, step, prompt, member])))
        for prompt in prompt_indices.tolist()
        for member in range(group_size)
    ]
    return torch.from_numpy(np.stack([row.random(length) for row in rows]))


def step_indices(seed: int, step: int, n_rows: int, rows_per_step: int) -> list[int]:
    """The rows that form step `step`: a fresh permutation of all rows each pass, no row twice in a pass.

    Rows left over at the end of a pass (`n_rows % rows_per_step`) are skipped in that pass.

    Raises:
        UserError: fewer rows than one step needs.
    """
    steps_per_pass = n_rows // rows_per_step
    if steps_per_pass == 0:
        raise UserError(
            f"too few rows: got {n_rows}, expected at least the {rows_per_step} of one step; "
            "add rows or lower the batch size"
        )
    which_pass, position = divmod(step, steps_per_pass)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([_ORDER, seed, which_pass])))
    order = generator.permutation(n_rows)
    return order[position * rows_per_step : (position + 1) * rows_per_step].tolist()


def minibatch_order(seed: int, step: int, iteration: int, num_minibatches: int) -> list[int]:
    """The order of the minibatches of a rollout, a permutation for each pass over it."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([_MINIBATCHES, seed, step, iteration])))
    return generator.permutation(num_minibatches).tolist()


def spare_indices(seed: int, step: int, n_rows: int, taken: list[int], n_spare: int) -> list[int]:
    """Further rows of step `step`, different from each other and from those taken.

    Raises:
        UserError: there are not that many rows.
    """
    if len(taken) + n_spare > n_rows:
        raise UserError(
            f"too few rows: got {n_rows}, expected at least the {len(taken)} of one step and {n_spare} spare ones; "
            "add rows or lower the numbers"
        )
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([_SPARE, seed, step])))
    used, found = set(taken), []
    while len(found) < n_spare:
        row = int(generator.integers(n_rows))
        if row not in used:
            used.add(row)
            found.append(row)
    return found


def selection_generator(seed: int, step: int) -> np.random.Generator:
    """What the choice of comparisons at a step draws from."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([_SELECTION, seed, step])))


def label_uniforms(seed: int, step: int, n_questions: int) -> list[float]:
    """One uniform number in [0, 1) for the simulated answer to each question of a step."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([_LABELS, seed, step])))
    return generator.random(n_questions).tolist()
