"""Warnings about what only shows while training."""

from typing import Any

import lightning as L

from grpovi_lightning.adjustment.diagnostics import CHANGED
from grpovi_lightning.callbacks.status import report_warning
from grpovi_lightning.modules.outcome import outcome_of
from grpovi_lightning.ops.masked import differs, masked_extremes

_NEARLY_ALL = 0.9
_MANY_UNSCORED = 0.1


class RewardWatch(L.Callback):
    """Warns, once each, of an adjustment without effect and of completions without reward.

    Both are judged over windows of `window` steps, and at the end of training over the steps that are left. Problems of
    a reward that learns, such as an oracle that does not answer, are passed on as they come.
    """

    def __init__(self, window: int = 10) -> None:
        """Set the window, in training steps."""
        self.window = window
        self._warned: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self._steps = self._groups = self._flat = self._changed = self._completions = self._unscored = 0
        self._adjustment: str | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count groups without variance, groups that the adjustment changed, and completions without a reward."""
        outcome = outcome_of(outputs)
        if outcome is None:
            return
        for problem in outcome.learned.problems:
            report_warning(trainer, problem)
        rewards, bounded, adjusted = outcome.rewards, outcome.bounded, outcome.adjusted.rewards
        scored = ~rewards.isnan()
        lowest, highest = masked_extremes(bounded, scored)
        span = (highest.amax() - lowest.amin()).clamp(min=1e-12)
        changed = ((adjusted - bounded).abs() > CHANGED * span).any(dim=1)  # NaN, which was not scored, is not above
        self._steps += 1
        self._groups += len(rewards)
        self._completions += outcome.pool.rewards.numel()
        self._unscored += int(outcome.pool.rewards.isnan().sum())
        self._flat += int((~differs(rewards, scored)).sum())
        self._changed += int(changed.sum())
        self._adjustment = outcome.adjustment if outcome.adjusts else None
        if self._steps >= self.window:
            self._judge(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge a run that is shorter than the window, too."""
        if self._steps:
            self._judge(trainer)

    def _judge(self, trainer: L.Trainer) -> None:
        if self._unscored > _MANY_UNSCORED * self._completions:
            self._warn(
                trainer,
                "unscorable completions",
                f"{self._unscored} of {self._completions} completions over {self._steps} steps had no reward, because "
                "a reward function returned None or NaN for them; they are not trained on. Check that the function "
                "scores what the policy writes",
            )
        some_vary = self._flat <= _NEARLY_ALL * self._groups  # else `Diagnoses` says what is wrong
        if some_vary and self._adjustment is not None and self._changed == 0:
            self._warn(
                trainer,
                "adjustment without effect",
                f"{self._adjustment} changed none of {self._groups} groups over {self._steps} steps. Over these steps "
                "this run equals GRPO, as it must where all rewards are at the ends of the range, such as 0 and 1",
            )
        self._reset()

    def _warn(self, trainer: L.Trainer, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            report_warning(trainer, f"{kind}: {text}")

    def state_dict(self) -> dict[str, Any]:
        """Return which warnings were given: a resumed run does not repeat them."""
        return {"warned": sorted(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._warned = set(state_dict["warned"])
