"""What an update does that does not fit into memory."""

import logging
from collections.abc import Callable

import torch

from grpovi_lightning.distributed import world_size
from grpovi_lightning.errors import TrainingError
from grpovi_lightning.modules.update_metrics import UpdateMetrics

_log = logging.getLogger(__name__)


def once_more_in_halves(
    gradient: Callable[[], UpdateMetrics], largest: Callable[[], int], shrink: Callable[[int], None], step: int
) -> UpdateMetrics:
    """Take a gradient; where memory runs out, once more in micro-batches of half the size.

    Several processes do not try again: those with memory left would wait for the gradients of the one without.

    Args:
        gradient: adds the gradient of an update to the parameters'.
        largest: returns the prompts of its largest micro-batch.
        shrink: forgets the gradients, and makes this many prompts the most of a micro-batch from here on. That changes
            a gradient by rounding alone.
        step: for the message.

    Raises:
        TrainingError: it does not fit then either, or there is nothing to halve.
    """
    try:
        return gradient()
    except torch.OutOfMemoryError as error:
        prompts, said = largest(), " ".join(str(error).split())[:200]
        if prompts == 1 or world_size() > 1:
            raise _does_not_fit(step, prompts, said) from error
    # Outside of the except clause, whose error keeps the tensors of the failed pass alive.
    half = (prompts + 1) // 2
    _log.warning(
        f"step {step}: out of memory in an update of {prompts} prompts a micro-batch ({said}); going on with {half}. "
        f"Set updates.prompts_per_micro_batch to {half} for the next run"
    )
    shrink(half)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return gradient()
    except torch.OutOfMemoryError as error:
        raise _does_not_fit(step, half, " ".join(str(error).split())[:200]) from error


def _does_not_fit(step: int, prompts: int, said: str) -> TrainingError:
    return TrainingError(
        f"step {step}: out of memory in an update of {prompts} prompts a micro-batch ({said}); set "
        "updates.prompts_per_micro_batch or tokens_per_micro_batch lower, or the policy's gradient_checkpointing, and "
        "continue from the last checkpoint with --ckpt_path"
    )
