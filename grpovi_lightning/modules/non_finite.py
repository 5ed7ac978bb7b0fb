"""A loss or gradient that is not finite: the update is refused, and its batch is written to a file."""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import lightning as L
import torch

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.metric_keys import GRAD_NORM, LOSS
from grpovi_lightning.modules.kept_batch import batch_file
from grpovi_lightning.structures import Experience

_NAMES = {LOSS: "loss", GRAD_NORM: "gradient norm"}


def refuse_non_finite(
    module: L.LightningModule, metrics: Mapping[str, float], batch: Callable[[], dict[str, Any]], look_at: str
) -> None:
    """Refuse an update whose loss or gradient norm over all ranks, as far as `metrics` has them, is not finite.

    Every rank writes its part of the batch first, the `step` with tensors and text: a file that is read with
    `torch.load(FILE, weights_only=True)`.

    Raises:
        TrainingError: names the numbers and the file, and tells to look at `look_at`.
    """
    found = {name: metrics[key] for key, name in _NAMES.items() if key in metrics}
    if all(isfinite(value) for value in found.values()):
        return
    content = batch()
    step = content["step"]
    try:
        file = batch_file(module.trainer, "non_finite", step, ".pt")
        torch.save(content | {"metrics": dict(metrics)}, file)
        kept = f"is in {file}"
    except (OSError, RuntimeError) as failure:  # the number is the one to tell
        kept = f"could not be written ({str(failure).splitlines()[0]})"
    numbers = ", ".join(f"{name} {value}" for name, value in found.items())
    raise TrainingError(
        f"step {step}: {numbers}; the update was not made, its batch {kept}; lower the learning rate or look at "
        f"{look_at}"
    )


def experience_content(experience: Experience) -> dict[str, Any]:
    """Return the part of a rollout that an update learned from, as tensors and text."""
    rollout = experience.rollout
    content = {
        "step": rollout.step,
        "prompts": list(rollout.prompts.texts),
        "completions": list(rollout.texts),
        "advantages": experience.advantages,
        "loss_mask": experience.loss_mask,
    }
    tensors = "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_logprobs", "ref_logprobs"
    return content | {name: getattr(rollout, name) for name in tensors}
