"""Randomness as pure functions of their coordinates, so that no generator state has to be kept.

A rollout depends on (weights, prompt, seed, step) alone: not on the batch a prompt is in, the order of
the batch, the number of processes or a resumed run. Two arms of a study see common random numbers.
"""

import os

import numpy as np
import torch
from torch import Tensor

from grpovi_lightning.errors import UserError

# First word of the key: without it, two uses with the same numbers would draw the same stream.
_SAMPLING, _ORDER, _MINIBATCHES, _SPARE, _SELECTION, _LABELS, _TABLE, _INITIAL = 0, 1, 2, 3, 4, 5, 6, 7
_DITHER = 8
_KEEPING, _SKIPPING = 9, 10

HELD_OUT_STEP = 1 << 40
"""The step that held-out sampling passes: every evaluation draws the same numbers, and no training step does."""

INITIAL_STEP = HELD_OUT_STEP + 1
"""The step that sampling passes for the initial policy's completions that a reward is normalised over."""


def resolve_seed(seed: int | None) -> int:
    """Return `seed`, or the run's global seed as set by `lightning.seed_everything`.

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
    """Draw one uniform number for each token position of every completion.

    The stream of a completion is seeded by (seed, step, prompt index, completion index). A larger `length` makes it
    longer and does not change its beginning.

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
        _generator(_SAMPLING, seed, step, prompt, member).random(length)
        for prompt in prompt_indices.tolist()
        for member in range(group_size)
    ]
    return torch.from_numpy(np.stack(rows))


def dither_uniforms(seed: int, step: int, prompt_indices: Tensor, group_size: int) -> Tensor:
    """Draw one uniform number for each completion, for the noise on its reward.

    The stream of a prompt is seeded by (seed, step, prompt index), and the g-th completion gets its g-th number. So a
    larger group only adds to its end.

    Args:
        seed: the run's seed.
        step: the policy step.
        prompt_indices: [P] stable number of each prompt.
        group_size: G completions a prompt.

    Returns:
        [P, G] float64 in [0, 1), on the CPU.
    """
    return _uniforms_of(_DITHER, seed, step, prompt_indices, group_size)


def step_indices(seed: int, step: int, n_rows: int, rows_per_step: int) -> list[int]:
    """Return the rows that form step `step`: every pass over the data is a new permutation of all rows.

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
    order = _generator(_ORDER, seed, which_pass).permutation(n_rows)
    return order[position * rows_per_step : (position + 1) * rows_per_step].tolist()


def minibatch_order(seed: int, step: int, iteration: int, num_minibatches: int) -> list[int]:
    """Return the order of a rollout's minibatches, another permutation for each pass (`iteration`) over it."""
    return _generator(_MINIBATCHES, seed, step, iteration).permutation(num_minibatches).tolist()


def spare_indices(seed: int, step: int, n_rows: int, taken: list[int], n_spare: int) -> list[int]:
    """Return further rows of step `step`, different from each other and from those taken.

    Raises:
        UserError: there are not that many rows.
    """
    if len(taken) + n_spare > n_rows:
        raise UserError(
            f"too few rows: got {n_rows}, expected at least the {len(taken)} of one step and {n_spare} spare ones; "
            "add rows or lower the numbers"
        )
    generator = _generator(_SPARE, seed, step)
    used, found = set(taken), []
    while len(found) < n_spare:
        row = int(generator.integers(n_rows))
        if row not in used:
            used.add(row)
            found.append(row)
    return found


def initial_indices(seed: int, n_rows: int, count: int) -> list[int]:
    """Return `count` different rows of the `n_rows` of the training table, for a sample of the initial policy."""
    return _generator(_INITIAL, seed).permutation(n_rows)[:count].tolist()


def keeping_uniforms(seed: int, step: int, prompt_indices: Tensor, group_size: int) -> Tensor:
    """Draw a uniform number for each completion, by which a step keeps some at random; [P, G] float64, on the CPU."""
    return _uniforms_of(_KEEPING, seed, step, prompt_indices, group_size)


def skipping_uniforms(seed: int, step: int, prompt_indices: list[int]) -> list[float]:
    """Draw a uniform number in [0, 1) for each prompt, by which a step skips it; another at every step."""
    return [float(_generator(_SKIPPING, seed, step, prompt).random()) for prompt in prompt_indices]


def selection_generator(seed: int, step: int) -> np.random.Generator:
    """Return the generator from which a step chooses the comparisons to label."""
    return _generator(_SELECTION, seed, step)


def label_uniforms(seed: int, step: int, n_questions: int) -> list[float]:
    """Draw a uniform number in [0, 1) for the simulated answer to each question of a step."""
    return _generator(_LABELS, seed, step).random(n_questions).tolist()


def sample_order(seed: int, n_rows: int) -> list[int]:
    """Return the rows of a table in random order, of which the first so many are a sample."""
    return _generator(_TABLE, seed).permutation(n_rows).tolist()


def _uniforms_of(use: int, seed: int, step: int, prompt_indices: Tensor, group_size: int) -> Tensor:
    """Draw uniform numbers for the completions of each prompt from a stream of its own, [P, G] float64, on the CPU."""
    rows = [_generator(use, seed, step, prompt).random(group_size) for prompt in prompt_indices.tolist()]
    return torch.from_numpy(np.stack(rows))


def _generator(*key: int) -> np.random.Generator:
    # Philox by name: NumPy may change which generator `default_rng` stands for, and with it every run.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
