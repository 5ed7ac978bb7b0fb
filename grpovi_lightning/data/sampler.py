"""Which rows form each training step."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler

from grpovi_lightning.randomness import spare_indices, step_indices


@dataclass(eq=False)
class StepSampler(Sampler[list[int]]):
    """The rows of the training steps `first_step` to `last_step` - 1, each a pure function of (seed, step).

    Each rank gets its own part of every step's rows, followed by its part of the step's spare rows. Rows and spare rows
    per step are those of all ranks.
    """

    n_rows: int
    rows_per_step: int
    seed: int
    first_step: int
    last_step: int
    rank: int
    world_size: int
    spare_per_step: int = 0

    def __len__(self) -> int:
        # The whole run counts: Lightning adds the batches done before a resume to those fetched since.
        return self.last_step

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.rows_of, range(self.first_step, self.last_step))

    def rows_of(self, step: int) -> list[int]:
        """Return this rank's rows of a step, of any step at any time."""
        rows = step_indices(self.seed, step, self.n_rows, self.rows_per_step)
        spare = spare_indices(self.seed, step, self.n_rows, rows, self.spare_per_step)
        return self._share(rows) + self._share(spare)

    def _share(self, rows: list[int]) -> list[int]:
        size = len(rows) // self.world_size
        return rows[self.rank * size : (self.rank + 1) * size]
