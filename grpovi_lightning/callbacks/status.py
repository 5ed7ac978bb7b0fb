"""The state of a run on disk: `status.json`, written by the run itself."""

import hashlib
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpovi_lightning.modules.outcome import outcome_of

STATUS_FILE = "status.json"
_SECONDS_BETWEEN_WRITES = 1.0


class RunStatus(L.Callback):
    """Keeps `<run>/status.json` up to date: state, step, error, warnings, and a digest of the first rollout.

    Every write replaces the whole file at once, so that a reader never sees half of it.
    """

    def __init__(self, folder: str | Path, seed: int | None) -> None:
        """Takes the run folder and the run's seed."""
        self.path = Path(folder) / STATUS_FILE
        self.content: dict[str, Any] = {"seed": seed, "error": None, "warnings": [], "first_rollout": None}
        self._before_seconds = 0.0
        self._began = time.monotonic()
        self._written = 0.0

    def warn(self, text: str) -> None:
        """Adds a warning, once, for the report."""
        if text not in self.content["warnings"]:
            self.content["warnings"].append(text)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Starts the clock; a resumed run goes on with its earlier record."""
        if stage != "fit":
            return
        self._began = time.monotonic()
        earlier = json.loads(self.path.read_text()) if self.path.exists() else {}
        self._before_seconds = earlier.get("wall_seconds", 0.0)
        now = _timestamp()
        self.content |= {"started": now} | {
            name: earlier[name] for name in ("started", "warnings", "first_rollout") if name in earlier
        }
        self.content |= {
            "stage": type(pl_module).__name__,
            "adjustment": type(getattr(pl_module, "adjustment", None)).__name__
            if hasattr(pl_module, "adjustment")
            else None,
            "max_steps": trainer.max_steps,
            "device": str(trainer.strategy.root_device),
            "world_size": trainer.world_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "pid": os.getpid(),
        }
        self._write(trainer, "running")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the first rollout, and the step about once a second."""
        outcome = outcome_of(outputs)
        if self.content["first_rollout"] is None and outcome is not None:
            sampled = outcome.sampled
            self.content["first_rollout"] = rollout_digest(sampled.completion_ids, sampled.completion_mask)
            self._write(trainer, "running")
        elif time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write(trainer, "running")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Long evaluations are signs of life, too."""
        if trainer.state.fn == "fit" and time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self._write(trainer, "running")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flushes the scalars first: a run continued from this checkpoint does not log its earlier steps again."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The run is whole."""
        self._write(trainer, "finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Notes what ended the run; an evaluation of a finished run leaves its record alone."""
        if trainer.state.fn != "fit":
            return
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        message = " ".join(str(exception).split()) or type(exception).__name__
        if not stopped:
            self.content["error"] = f"{type(exception).__name__}: {message}"
        self._write(trainer, "interrupted" if stopped else "failed")

    def _write(self, trainer: L.Trainer, state: str) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        self.content |= {
            "state": state,
            "step": trainer.global_step,
            "updated": _timestamp(),
            "wall_seconds": round(self._before_seconds + time.monotonic() - self._began, 3),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.content, indent=1) + "\n")
        draft.replace(self.path)


def report_warning(trainer: L.Trainer, text: str) -> None:
    """Warns on the terminal and in the run's record, from which the report takes it."""
    rank_zero_warn(text)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunStatus):
            callback.warn(text)


def rollout_digest(ids: torch.Tensor, mask: torch.Tensor) -> str:
    """SHA-256 of the completions' tokens, padding left out. ids, mask: [B, T]."""
    digest = hashlib.sha256()
    for row, kept in zip(ids.cpu(), mask.cpu(), strict=True):
        digest.update(row[kept].to(torch.int64).numpy().tobytes() + b"\n")
    return digest.hexdigest()


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
