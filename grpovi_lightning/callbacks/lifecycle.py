"""What happens before the first and after the last training step."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from grpovi_lightning.trainer_state import batches_begun


class EvaluateAtStart(L.Callback):
    """Evaluates the initial policy, so that every held-out curve begins at step 0."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the validation loop once; a resumed run has done so."""
        if trainer.global_step > 0 or not trainer.enable_validation:
            return
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


class ExportModel(L.Callback):
    """Saves the trained model as a Hugging Face checkpoint folder at the end."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder, from rank 0."""
        if trainer.is_global_zero:
            pl_module.save_pretrained(self.folder)  # type: ignore[operator]


class TimeLimit(Timer):
    """Ends a run after a time, between two optimiser steps. A run that is continued gets the whole time again."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock; a step whose gradients are half accumulated goes on."""
        if batches_begun(trainer) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Save nothing: the time of earlier attempts does not count."""
        return {}
