"""A loss or gradient that is not finite: the update is refused, and its batch is written to a file."""

from math import isfinite

import lightning as L
import torch

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import TrainingError
from grpovi_lightning.modules.kept_batch import batch_file
from grpovi_lightning.structures import Experience


def refuse_non_finite(module: L.LightningModule, experience: Experience, metrics: dict[str, float]) -> None:
    """Refuse an update, computed from `experience`, whose loss or gradient norm over all ranks is not finite.

    Every rank writes its part of the batch first: a file of tensors and text, which is read with
    `torch.load(FILE, weights_only=True)`.

    Raises:
        TrainingError: names the numbers and the file.
    """
    if isfinite(metrics[keys.LOSS]) and isfinite(metrics[keys.GRAD_NORM]):
        return
    rollout = experience.rollout
    file = batch_file(module.trainer, "non_finite", rollout.step, ".pt")
    content = {
        "step": rollout.step,
        "metrics": dict(metrics),
        "prompts": list(rollout.prompts.texts),
        "completions": list(rollout.texts),
        "advantages": experience.advantages,
        "loss_mask": experience.loss_mask,
    }
    tensors = "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old_logprobs", "ref_logprobs"
    torch.save(content | {name: getattr(rollout, name) for name in tensors}, file)
    raise TrainingError(
        f"step {rollout.step}: loss {metrics[keys.LOSS]}, gradient norm {metrics[keys.GRAD_NORM]}; the update was not "
        f"made, its batch is in {file}; lower the learning rate or look at the rewards of this step"
    )
