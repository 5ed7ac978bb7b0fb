"""When a run is saved."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from grpovi_lightning.trainer_state import batches_begun


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but a step that ends in an evaluation is saved after the evaluation.

    A run that is killed during the evaluation then continues from an earlier checkpoint and makes the evaluation
    again. Saved before it, the run would continue after it, and the evaluation would be missing.
    """

    _waits = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or wait for the evaluation that follows."""
        n_batches = batches_begun(trainer)
        self._waits = trainer.enable_validation and n_batches % (trainer.val_check_batch or n_batches + 1) == 0
        if not self._waits:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the step that waited."""
        if self._waits:
            self._waits = False
            n_batches = batches_begun(trainer)
            super().on_train_batch_end(trainer, pl_module, None, None, n_batches - 1)
        super().on_validation_end(trainer, pl_module)
