"""When a run is saved."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from grpovi_lightning.trainer_state import batches_begun, stopped_early


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but a step that ends in an evaluation is saved after the evaluation.

    A run that is killed during the evaluation then continues from an earlier checkpoint and makes the evaluation
    again. Saved before it, the run would continue after it, and the evaluation would be missing. A run that is stopped
    before its last step is saved where it stops.
    """

    _waits = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or wait for the evaluation that follows."""
        n_batches = batches_begun(trainer)
        evaluates = stopped_early(trainer) or n_batches % (trainer.val_check_batch or n_batches + 1) == 0
        self._waits = trainer.enable_validation and evaluates
        if not self._waits:
            self._save(trainer, pl_module, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the step that waited."""
        if self._waits:
            self._waits = False
            self._save(trainer, pl_module, batches_begun(trainer) - 1)
        super().on_validation_end(trainer, pl_module)

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, None, None, batch_idx)
        if stopped_early(trainer) and self._last_global_step_saved != trainer.global_step:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
