"""How a run ends that is asked to: by SIGTERM, as schedulers do before they take a machine away."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from grpovi_lightning.trainer_state import batches_begun

SIGTERM_STATUS = 128 + signal.SIGTERM
"""The exit status that a shell expects of a program ended by SIGTERM: 143."""


class StopOnSigterm(L.Callback):
    """Ends a run after the step in which it received SIGTERM, saved, so that it goes on as if nothing had happened.

    The evaluation that the step ends in is finished first. Whichever rank got the signal, all ranks stop after the same
    step. By itself Lightning would stop within an evaluation, save nothing, and exit with status 0; under DDP it would
    talk to other ranks from within the signal's handler, in the middle of whatever they tell each other.
    """

    def __init__(self) -> None:
        self.received_sigterm = False
        """Whether this rank got the signal."""
        self.asked = False
        """Whether some rank got it, as all ranks agreed after the last step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signal from Lightning, which gives it back to whoever had it when the trainer is done."""
        self.received_sigterm = self.asked = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received_sigterm = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree whether to stop; a step whose gradients are half accumulated goes on."""
        if batches_begun(trainer) % trainer.accumulate_grad_batches == 0:
            self._agree(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Agree once more: the signal may have come during the evaluation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._agree(trainer)

    def _agree(self, trainer: L.Trainer) -> None:
        self.asked = trainer.strategy.reduce_boolean_decision(self.received_sigterm, all=False)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before the next step. A run that has done its last one ends as usual."""
        if self.asked:
            raise SIGTERMException(SIGTERM_STATUS)


def asked_to_stop(trainer: L.Trainer) -> bool:
    """Tell whether the run stops before its next step because of SIGTERM."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(callback.asked for callback in callbacks if isinstance(callback, StopOnSigterm))
