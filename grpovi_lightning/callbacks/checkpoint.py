"""When a run is saved."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but a step that ends in an evaluation is saved after it, not before.

    Saved before, a run killed during the evaluation would go on behind it, and the curve would have a hole. So it
    goes on from the checkpoint before, and comes to the evaluation again.
    """

    _waits = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, or waits for the evaluation that follows."""
        n_batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._waits = trainer.enable_validation and n_batches % (trainer.val_check_batch or n_batches + 1) == 0
        if not self._waits:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves what waited."""
        if self._waits:
            self._waits = False
            n_batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            super().on_train_batch_end(trainer, pl_module, None, None, n_batches - 1)
        super().on_validation_end(trainer, pl_module)
