"""What happens before the first and after the last training step."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from grpovi_lightning.trainer_state import batches_begun, shards


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
    """Saves the trained model as a Hugging Face checkpoint folder at the end, and what the module puts beside it.

    Everything is written under another name first: a folder under its own name is whole, and of the end of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._done = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._done = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder, from rank 0; sharded weights are gathered from all."""
        self._done = True
        draft = self.folder.with_name(f"{self.folder.name}.new")
        if trainer.is_global_zero:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        if trainer.is_global_zero or shards(trainer):
            pl_module.save_pretrained(draft / self.folder.name)  # type: ignore[operator]
        if not trainer.is_global_zero:
            return
        beside = [entry for entry in draft.iterdir() if entry.name != self.folder.name]
        for entry in (*beside, draft / self.folder.name):
            target = self.folder.with_name(entry.name)
            shutil.rmtree(target, ignore_errors=True)
            entry.rename(target)
        draft.rmdir()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the folder of a run that goes on from its last step, too, which Lightning does not train."""
        if not self._done:
            self.on_train_end(trainer, pl_module)


class TimeLimit(Timer):
    """Ends a run after a time, between two optimiser steps. A run that is continued gets the whole time again."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock; a step whose gradients are half accumulated goes on."""
        if batches_begun(trainer) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Save nothing: the time of earlier attempts does not count."""
        return {}
