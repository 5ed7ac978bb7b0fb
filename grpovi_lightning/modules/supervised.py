"""What modules trained by Lightning's own loop share: one mean over the rows of an update."""

from typing import Any

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.data.modules import TextPairs
from grpovi_lightning.distributed import sum_over_ranks, world_size
from grpovi_lightning.models.sharding import clip_gradients
from grpovi_lightning.modules.checkpoints import FrozenLeftOut
from grpovi_lightning.modules.non_finite import refuse_non_finite


class SupervisedModule(FrozenLeftOut):
    """A module whose update is made by one mean over its rows: all batches that Lightning accumulates, on all ranks.

    Lightning and DDP take the mean of the batches' means, in which a row of a small batch counts more than one of a
    large batch. Here each batch's mean is weighted by its rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self._update: list[tuple[Tensor, TextPairs]] = []
        """The batches of the update so far: sums over the rows of all ranks with the number of these, and the texts."""

    def on_train_start(self) -> None:
        self._update = []

    def weighted(self, loss: Tensor, means: Tensor, count: int, batch: TextPairs) -> tuple[Tensor, list[float]]:
        """Return a batch's loss such that the gradients of an update become those of one mean over its rows.

        Args:
            loss: mean over the batch's rows (tokens, pairs).
            means: [n] further means over them to log, of which the first is a loss.
            count: rows of the batch on this rank.
            batch: the texts, for a message about a number that is not finite.

        Returns:
            the loss to return from `training_step`, and the n means over the rows of the update so far, on all ranks.

        Raises:
            TrainingError: the loss is not finite on some rank.
        """
        of_rank = torch.cat([means.detach().double() * count, means.new_tensor([count]).double()])
        self._update.append((sum_over_ranks(of_rank), batch))
        *sums, rows = torch.stack([found for found, _ in self._update]).sum(dim=0).tolist()
        self._refuse_non_finite({keys.LOSS: sums[0] / rows})
        return loss * (count * world_size() / self._first_rows), [value / rows for value in sums]

    @property
    def _first_rows(self) -> float:
        """Rows of the update's first batch, by which the gradients of all its batches are scaled until it is whole."""
        return float(self._update[0][0][-1])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the accumulated gradients their denominator; Lightning clips them afterwards.

        Raises:
            TrainingError: a gradient is not finite; the update is not made.
        """
        if not self._update:  # a subclass with a training step of its own
            return
        rows = sum(float(found[-1]) for found, _ in self._update)
        factor = self.trainer.accumulate_grad_batches * self._first_rows / rows  # Lightning divided by the first
        if factor != 1.0:
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.mul_(factor)
        # Under a gradient scaler infinite gradients are no accident: it leaves the update out and lowers its scale.
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            norm = clip_gradients(list(self.parameters()), torch.inf)
            self._refuse_non_finite({keys.GRAD_NORM: float(sum_over_ranks(norm))})
        self._update = []

    def _refuse_non_finite(self, metrics: dict[str, float]) -> None:
        def batches() -> dict[str, Any]:
            return {"step": self.trainer.global_step, "batches": [batch for _, batch in self._update]}

        refuse_non_finite(self, metrics, batches, "the rows of this update")
