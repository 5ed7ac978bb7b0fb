"""The record that a run keeps of itself while it trains."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpovi_lightning.callbacks.ranks import rank_watch
from grpovi_lightning.data.base import TextDataModule
from grpovi_lightning.errors import without_secrets
from grpovi_lightning.modules.logging import mark_restart
from grpovi_lightning.modules.outcome import outcome_of
from grpovi_lightning.run_record.status import RunRecord, State, read_status, timestamp, write_status
from grpovi_lightning.trainer_state import steps_done, stopped_early

_SECONDS_BETWEEN_WRITES = 1.0


class RunStatus(L.Callback):
    """Keeps `<run>/status.json` up to date: state, step, error, warnings, and a digest of the first rollout."""

    def __init__(self, folder: str | Path, seed: int | None) -> None:
        self.folder = Path(folder)
        self.content: dict[str, Any] = {"seed": seed, "error": None, "warnings": (), "first_rollout": None}
        """Fields of the `RunRecord` that is written next."""
        self._before_seconds = 0.0
        self._began = time.monotonic()
        self._written = 0.0
        self._marked = False

    def warn(self, text: str) -> None:
        """Add a warning for the report, once."""
        if text not in self.content["warnings"]:
            self.content["warnings"] += (text,)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the clock; a resumed run goes on with its earlier record, as far as its checkpoint knows no better."""
        if stage != "fit":
            return
        self._began, self._marked = time.monotonic(), False
        self.content["started"] = timestamp()
        if (earlier := read_status(self.folder)) is not None:
            self._before_seconds = earlier.wall_seconds or 0.0
            self.content |= {"warnings": earlier.warnings, "first_rollout": earlier.first_rollout}
            self.content["started"] = earlier.started or self.content["started"]
        adjustment = getattr(pl_module, "adjustment", None)
        self.content |= {
            "stage": type(pl_module).__name__,
            "adjustment": None if adjustment is None else type(adjustment).__name__,
            "adjusts": None if adjustment is None else adjustment.adjusts,
            "max_steps": trainer.max_steps,
            "device": str(trainer.strategy.root_device),
            "world_size": trainer.world_size,
            "threads": torch.get_num_threads(),
            "loggers": tuple(type(logger).__name__ for logger in trainer.loggers),
            "torch": torch.__version__,
            "pid": os.getpid(),
        }
        self._write(trainer, State.RUNNING)

    def state_dict(self) -> dict[str, Any]:
        """Return what is known up to a checkpoint: a run continued from it supersedes what came later."""
        kept = {"warnings": list(self.content["warnings"]), "first_rollout": self.content["first_rollout"]}
        return kept | {"wall_seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before_seconds = state_dict["wall_seconds"]
        self.content |= {"warnings": tuple(state_dict["warnings"]), "first_rollout": state_dict["first_rollout"]}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark where a resumed run goes on."""
        if not self._marked and steps_done(trainer) > 0:
            mark_restart(trainer)
        self._marked = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note which rows the run is evaluated on, now that those too long for the model are left out."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.content["held_out"] = data.held_out_digest() if isinstance(data, TextDataModule) else None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the first rollout at once, and the step about once a second."""
        outcome = outcome_of(outputs)
        if self.content["first_rollout"] is None and outcome is not None:
            sampled = outcome.sampled
            self.content["first_rollout"] = rollout_digest(sampled.completion_ids, sampled.completion_mask)
            self._write(trainer, State.RUNNING)
        elif time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write(trainer, State.RUNNING)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Show that a run lives during a long evaluation, too."""
        if trainer.state.fn == "fit" and time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write(trainer, State.RUNNING)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the scalars to disk first: a run continued from this checkpoint does not log earlier steps again."""
        for logger in trainer.loggers:
            logger.save()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the run finished, also one that had no step left to do, or what stopped it before its last step."""
        self.on_train_start(trainer, pl_module)
        early = stopped_early(trainer)
        if early:
            self.content["error"] = "stopped before its last step, by trainer.max_time or a callback"
        self._write(trainer, State.INTERRUPTED if early else State.FINISHED)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Note what ended the run; an evaluation of a finished run leaves its record alone."""
        if trainer.state.fn != "fit":
            return
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        message = " ".join(str(exception).split()) or type(exception).__name__
        if isinstance(exception, SIGTERMException):
            self.content["error"] = "stopped by SIGTERM"
        elif not stopped:
            watch = rank_watch(trainer)
            self.content["error"] = (watch and watch.lost) or f"{type(exception).__name__}: {message}"
        with suppress(OSError):  # on a full disk the record stays as it was; the exception is the one to tell
            self._write(trainer, State.INTERRUPTED if stopped else State.FAILED)

    def ended_by(self, trainer: L.Trainer, reason: str) -> None:
        """Note what ends the process, outside of Lightning's hooks."""
        self.content["error"] = reason
        with suppress(OSError):
            self._write(trainer, State.FAILED)

    def _write(self, trainer: L.Trainer, state: str) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        self.content |= {
            "state": state,
            "step": trainer.global_step,
            "updated": timestamp(),
            "wall_seconds": self._seconds(),
        }
        secret_free: dict[str, Any] = {"warnings": tuple(map(without_secrets, self.content["warnings"]))}
        if self.content["error"] is not None:
            secret_free["error"] = without_secrets(self.content["error"])
        write_status(self.folder, RunRecord(**self.content | secret_free))

    def _seconds(self) -> float:
        return round(self._before_seconds + time.monotonic() - self._began, 3)


def report_warning(trainer: L.Trainer, text: str) -> None:
    """Warn on the terminal and in the run's record, from which the report takes it."""
    rank_zero_warn(text)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunStatus):
            callback.warn(text)


def rollout_digest(ids: torch.Tensor, mask: torch.Tensor) -> str:
    """Return the SHA-256 of the completions' tokens, padding left out. ids, mask: [B, T]."""
    digest = hashlib.sha256()
    for row, kept in zip(ids.cpu(), mask.cpu(), strict=True):
        digest.update(row[kept].to(torch.int64).numpy().tobytes() + b"\n")
    return digest.hexdigest()
