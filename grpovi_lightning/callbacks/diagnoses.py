"""Warnings by the diagnoses of `grpovi_lightning.diagnoses`, while a run is under way."""

from typing import Any

import lightning as L

from grpovi_lightning.callbacks.status import report_warning
from grpovi_lightning.diagnoses import WINDOW, Series, diagnose, is_read, logged
from grpovi_lightning.metric_keys import EVAL_PREFIX
from grpovi_lightning.modules.outcome import outcome_of
from grpovi_lightning.trainer_state import steps_done, stopped_early


class Diagnoses(L.Callback):
    """Keeps the curves that the diagnoses read, and warns of each kind of finding once.

    Judged after every `every` steps and after every evaluation, once there are enough steps for a mean, and at the end
    of training.
    """

    def __init__(self, every: int = 10) -> None:
        """Set the number of training steps from one judgement to the next."""
        self.every = every
        self._warned: set[str] = set()
        self._curves: dict[str, tuple[list[int], list[float]]] = {}
        """Tag -> steps and values."""
        self._adjusts: bool | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the scalars of a step of the GRPO family."""
        outcome = outcome_of(outputs)
        if outcome is None:
            return
        self._adjusts = outcome.adjusts
        done = steps_done(trainer)
        self._keep(trainer, done - 1, held_out=False)
        if done % self.every == 0:
            self._judge(trainer, ended=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scalars of an evaluation inside of training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep(trainer, steps_done(trainer), held_out=True)
            self._judge(trainer, ended=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge what takes the whole run, unless it was stopped and may go on."""
        self._judge(trainer, ended=not stopped_early(trainer))

    def _keep(self, trainer: L.Trainer, step: int, *, held_out: bool) -> None:
        for tag, value in trainer.callback_metrics.items():
            if is_read(tag) and tag.startswith(EVAL_PREFIX) == held_out:
                steps, values = self._curves.setdefault(tag, ([], []))
                steps.append(step)
                values.append(float(value))

    def _judge(self, trainer: L.Trainer, *, ended: bool) -> None:
        if not self._curves or (not ended and steps_done(trainer) < WINDOW):
            return
        run = logged({tag: Series.of(*curve) for tag, curve in self._curves.items()}, self._adjusts)
        for finding in diagnose(run, ended=ended):
            if finding.kind not in self._warned:
                self._warned.add(finding.kind)
                report_warning(trainer, str(finding))

    def state_dict(self) -> dict[str, Any]:
        """Return the curves, and which warnings were given: a resumed run does not repeat them."""
        return {"warned": sorted(self._warned), "curves": self._curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._warned, self._curves = set(state_dict["warned"]), state_dict["curves"]
