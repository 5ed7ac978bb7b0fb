"""A warning where training in bfloat16 changes nothing."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from grpovi_lightning.callbacks.status import report_warning

_WEIGHTS_OF_A_TENSOR = 1024


class RoundingWatch(L.Callback):
    """Warns, once, where most bfloat16 weights that have a gradient are the same after `window` updates.

    Every update is rounded to bfloat16, of which a number has 8 bits. Smaller ones are lost, however many there are.
    """

    def __init__(self, window: int = 10) -> None:
        """Set the window."""
        self.window = window
        self._updates, self._done = 0, False
        self._watched: list[tuple[Tensor, Tensor, Tensor]] = []
        """Of each tensor: itself, some of its weights before the first update, and which of them had a gradient."""

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note some of the weights before the first update that can change them, and count updates from there on."""
        if self._watched or self._done:
            self._updates += 1
            return
        trained = [p for group in optimizer.param_groups if float(group["lr"]) > 0.0 for p in group["params"]]
        self._watched = [
            (p, _some(p).clone(), _some(p.grad) != 0.0)
            for p in trained
            if p.dtype == torch.bfloat16 and p.grad is not None
        ]
        self._updates = 1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if self._watched and self._updates >= self.window:
            self._judge(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge a run that is shorter than the window, too."""
        if self._watched:
            self._judge(trainer)

    def _judge(self, trainer: L.Trainer) -> None:
        counts = [torch.stack([had.sum(), (had & (_some(p) == before)).sum()]) for p, before, had in self._watched]
        with_gradient, still = torch.stack(counts).sum(dim=0).tolist()
        self._watched, self._done = [], True
        if still > 0.5 * with_gradient:
            report_warning(
                trainer,
                f"updates lost in rounding: {still / with_gradient:.0%} of the bfloat16 weights with a gradient did "
                f"not move in {self._updates} updates, because their updates are smaller than its rounding. Train "
                "weights of dtype float32 (with trainer.precision bf16-mixed), or raise the learning rate",
            )


def _some(tensor: Tensor) -> Tensor:
    """Return about `_WEIGHTS_OF_A_TENSOR` numbers of this rank's part of a tensor, [n]."""
    flat = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().flatten()
    return flat[:: max(1, flat.numel() // _WEIGHTS_OF_A_TENSOR)]
