"""Warnings about what only shows while training."""

from typing import Any

import lightning as L

from grpovi_lightning.adjustment.diagnostics import CHANGED
from grpovi_lightning.callbacks.status import report_warning
from grpovi_lightning.ops.masked import differs, masked_extremes

_NEARLY_ALL = 0.9
_MANY_UNSCORED = 0.1


class RewardWatch(L.Callback):
    """Warns, once each, of groups without variance, of an adjustment without effect, of completions without reward.

    All are judged over windows of `window` steps, and at the end of training over what is left. What a reward that
    learns has to say, such as that nobody answers it, is passed on as it comes.
    """

    def __init__(self, window: int = 10) -> None:
        """Takes the window in training steps."""
        self.window = window
        self._warned: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self._steps = self._groups = self._flat = self._changed = self._completions = self._unscored = 0
        self._adjustment, self._adjusts = "", False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts groups without variance, groups that the adjustment changed, and completions without a reward."""
        if not isinstance(outputs, dict) or "adjusted" not in outputs:
            return
        for problem in outputs["problems"]:
            report_warning(trainer, problem)
        rewards, bounded, adjusted = outputs["rewards"], outputs["bounded"], outputs["adjusted"]
        scored = ~rewards.isnan()
        lowest, highest = masked_extremes(bounded, scored)
        span = (highest.amax() - lowest.amin()).clamp(min=1e-12)
        changed = ((adjusted - bounded).abs() > CHANGED * span).any(dim=1)  # NaN, which was not scored, is not above
        self._steps += 1
        self._groups += len(rewards)
        self._completions += rewards.numel()
        self._unscored += int((~scored).sum())
        self._flat += int((~differs(rewards, scored)).sum())
        self._changed += int(changed.sum())
        self._adjustment = outputs["adjustment"]
        self._adjusts = bool(getattr(pl_module.adjustment, "adjusts", True))
        if self._steps >= self.window:
            self._judge(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judges a run shorter than the window, too."""
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
        if self._flat > _NEARLY_ALL * self._groups:
            kind = "equal or missing rewards" if self._unscored else "equal rewards"
            self._warn(
                trainer,
                "groups without reward variance",
                f"{self._flat} of {self._groups} groups had {kind} over {self._steps} steps; they carry no "
                "gradient. Use prompts of middling difficulty, a larger group or a finer reward",
            )
        elif self._adjusts and self._changed == 0:
            self._warn(
                trainer,
                "adjustment without effect",
                f"{self._adjustment} changed none of {self._groups} groups over {self._steps} steps: their rewards are "
                "already at maximal variance, as 0/1 rewards are. Over these steps this run equals GRPO",
            )
        self._reset()

    def _warn(self, trainer: L.Trainer, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            report_warning(trainer, f"{kind}: {text}")

    def state_dict(self) -> dict[str, Any]:
        """Which warnings were given: a resumed run does not repeat them."""
        return {"warned": sorted(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self._warned = set(state_dict["warned"])
