"""When a run is saved, and how `last.ckpt` follows."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from grpovi_lightning.callbacks.stopping import asked_to_stop
from grpovi_lightning.models.checkpoint_folder import is_real_folder, remove
from grpovi_lightning.trainer_state import batches_begun, saves_folders, stopped_early


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, made for runs that are killed, moved and continued.

    A step that ends in an evaluation is saved after the evaluation. A run that is killed during the evaluation then
    continues from an earlier checkpoint and makes the evaluation again. Saved before it, the run would continue after
    it, and the evaluation would be missing. A run that is stopped before its last step is saved where it stops.

    With `save_last="link"`, `last.ckpt` is a link to the newest checkpoint. At every moment it leads to a whole one:
    it is turned to a new checkpoint when that is written, in one step, and only then older ones are removed. A
    checkpoint is a file, or a folder where each process writes its part.
    """

    _waits = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or wait for the evaluation that follows."""
        n_batches = batches_begun(trainer)
        has_table = trainer.enable_validation and sum(trainer.num_val_batches) > 0
        evaluates = stopped_early(trainer) or n_batches % (trainer.val_check_batch or n_batches + 1) == 0
        self._waits = has_table and evaluates
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
        if (stopped_early(trainer) or asked_to_stop(trainer)) and self._last_global_step_saved != trainer.global_step:
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Look for older checkpoints, which are to be removed, where a run folder that was moved has them now."""
        there, here = str(state_dict["dirpath"]), str(self.dirpath)
        if there != here and Path(here, Path(state_dict["best_model_path"]).name).exists():
            state_dict = {key: _moved(value, there, here) for key, value in state_dict.items()}
        super().load_state_dict(state_dict)

    # Lightning removes what `last.ckpt` leads to before it turns the link, and has no public method in between.

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._save_topk_checkpoint(trainer, monitor_candidates)
        if self.save_last == "link" and self._last_global_step_saved != trainer.global_step:
            # Not among the best, which alone are kept under a name of their own.
            if trainer.is_global_zero:
                remove(self._draft)  # a killed run may have left it, of the other kind
            super()._save_checkpoint(trainer, str(self._draft))
            if trainer.is_global_zero:
                _to_disk(self._draft)
                self._draft_becomes_last()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if self.save_last == "link" and trainer.is_global_zero:
            self._make_room(Path(filepath), saves_folders(trainer))
        super()._save_checkpoint(trainer, filepath)
        if self.save_last == "link" and trainer.is_global_zero:
            _to_disk(Path(filepath))
            self._turn_last(Path(filepath))

    def _make_room(self, path: Path, for_folder: bool) -> None:
        """Let `last.ckpt` lead to a copy where it leads to what no system call can replace."""
        if not (is_real_folder(path) or (for_folder and path.exists())):
            return
        if self._last.exists() and self._last.resolve() == path.resolve():
            copy = self._place_of_last()
            shutil.copytree(path, copy, copy_function=_linked) if path.is_dir() else _linked(str(path), str(copy))
            self._turn_last(copy)
        if not for_folder:
            remove(path)

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.save_last != "link":
            super()._save_last_checkpoint(trainer, monitor_candidates)
        elif not self._last_checkpoint_saved:  # a run that ends before its first checkpoint
            self._save_topk_checkpoint(trainer, monitor_candidates)

    @property
    def _draft(self) -> Path:
        return Path(str(self.dirpath), "last.new")

    @property
    def _last(self) -> Path:
        return self._draft.with_suffix(self.FILE_EXTENSION)

    def _turn_last(self, path: Path) -> None:
        """Let `last.ckpt` lead to a checkpoint."""
        remove(self._draft)
        self._draft.symlink_to(os.path.relpath(path, self._draft.parent))  # so that a run can be moved
        self._draft_replaces_last()

    def _draft_becomes_last(self) -> None:
        """Make the draft a checkpoint that is kept under no other name than `last.ckpt`."""
        if is_real_folder(self._draft):
            self._turn_last(self._draft.rename(self._place_of_last()))
        else:
            self._draft_replaces_last()

    def _draft_replaces_last(self) -> None:
        if is_real_folder(self._last):  # of an older version; no system call replaces one
            remove(self._last)
        self._draft.replace(self._last)
        for place in self._free_places():
            remove(place)

    def _place_of_last(self) -> Path:
        """Return where a checkpoint may be put that only `last.ckpt` will lead to."""
        place = self._free_places()[0]
        remove(place)
        return place

    def _free_places(self) -> list[Path]:
        """Return which of the two places for such checkpoints `last.ckpt` does not lead to."""
        places = [self._last.with_name(f"last.{number}{self.FILE_EXTENSION}") for number in (1, 2)]
        return [place for place in places if place.resolve() != self._last.resolve()]


def _moved(value: Any, there: str, here: str) -> Any:
    """Return paths, or a mapping of paths to scores, below another folder; anything else as it is."""
    if isinstance(value, dict):
        return {_moved(path, there, here): score for path, score in value.items()}
    return here + value.removeprefix(there) if isinstance(value, str) and value.startswith(there) else value


def _to_disk(path: Path) -> None:
    """Wait until a file, or those of a folder, are on the disk: an older one is removed next, and power may fail."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _linked(source: str, target: str) -> None:
    """Let a file have a second name, or copy it where the file system knows none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
