"""What an update does that does not fit into memory."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpovi_lightning.distributed import world_size
from grpovi_lightning.errors import TrainingError
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.modules.update_metrics import UpdateMetrics
from grpovi_lightning.structures import Experience

if TYPE_CHECKING:
    from grpovi_lightning.modules.updater import PolicyUpdater

_log = logging.getLogger(__name__)


def gradient_that_fits(
    updater: "PolicyUpdater",
    policy: LanguageModel,
    experience: Experience,
    prompts: list[int],
    backward: Callable[[Tensor], None],
    zero_grad: Callable[[], None],
) -> UpdateMetrics:
    """Take the gradient as `updater.gradient` does; where memory runs out, once more in micro-batches of half the size.

    Later updates keep the smaller size. It changes the gradient by rounding alone. Several processes do not try again:
    those with memory left would wait for the gradients of the one without.

    Raises:
        TrainingError: it does not fit then either, or there is nothing to halve.
    """
    try:
        return updater.gradient(policy, experience, prompts, backward)
    except torch.OutOfMemoryError as error:
        largest = max(map(len, updater.micro_batches(policy, experience, prompts)))
        said = " ".join(str(error).split())[:200]
        if largest == 1 or world_size() > 1:
            raise _does_not_fit(experience, largest, said) from error
    # Outside of the except clause, whose error keeps the tensors of the failed pass alive.
    half = (largest + 1) // 2
    _log.warning(
        f"step {experience.rollout.step}: out of memory in an update of {largest} prompts a micro-batch ({said}); "
        f"going on with {half}. Set updates.prompts_per_micro_batch to {half} for the next run"
    )
    updater.settings = replace(updater.settings, prompts_per_micro_batch=half)
    zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return updater.gradient(policy, experience, prompts, backward)
    except torch.OutOfMemoryError as error:
        raise _does_not_fit(experience, half, " ".join(str(error).split())[:200]) from error


def _does_not_fit(experience: Experience, largest: int, said: str) -> TrainingError:
    return TrainingError(
        f"step {experience.rollout.step}: out of memory in an update of {largest} prompts a micro-batch ({said}); set "
        "updates.prompts_per_micro_batch or tokens_per_micro_batch lower, or the policy's gradient_checkpointing, and "
        "continue from the last checkpoint with --ckpt_path"
    )
