"""Lightning data modules over tables of text. Batches are text; the modules tokenise with their model's tokenizer."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler, Subset

from grpovi_lightning.data.conversations import Conversations
from grpovi_lightning.data.formats import DemonstrationRows, PreferenceRows, PromptRows, RowFormat
from grpovi_lightning.data.tables import CSVType, Table, read_table
from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import resolve_seed, spare_indices, step_indices
from grpovi_lightning.structures import PromptBatch
from grpovi_lightning.trainer_arguments import check_trainer
from grpovi_lightning.trainer_state import batches_begun, batches_of_run

TextPairs = dict[str, list[Any]]
"""A batch for SFT or reward modelling: role ("prompt", "chosen", ...) -> one text or conversation a row."""


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
        for step in range(self.first_step, self.last_step):
            rows = step_indices(self.seed, step, self.n_rows, self.rows_per_step)
            spare = spare_indices(self.seed, step, self.n_rows, rows, self.spare_per_step)
            yield self._share(rows) + self._share(spare)

    def _share(self, rows: list[int]) -> list[int]:
        size = len(rows) // self.world_size
        return rows[self.rank * size : (self.rank + 1) * size]


class TextDataModule(L.LightningDataModule):
    """A training table, and optional tables for validation and test, read from disk in `setup`."""

    def __init__(
        self,
        train: str,
        validation: str | None,
        test: str | None,
        batch_size: int,
        validation_batch_size: int,
        seed: int | None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("validation_batch_size", validation_batch_size)):
            if value < 1:
                raise UserError(f"{name}: got {value}, expected at least 1")
        self.paths = {"train": train, "validation": validation, "test": test}
        self.batch_size, self.validation_batch_size, self.seed = batch_size, validation_batch_size, seed
        self.spare_per_step = 0
        self.csv_types: dict[str, CSVType] = {}
        self.tables: dict[str, Table] = {}

    rows: RowFormat
    """What the rows of its tables say."""

    def required_columns(self) -> list[str]:
        """Return columns that every table must have besides those of its rows' format."""
        return []

    def check(self, world_size: int) -> None:
        """Read the tables and check that they hold the rows of a step.

        Raises:
            UserError: a table is wrong or has too few rows, or a step's rows do not divide over the processes.
        """
        self._read_tables()
        for name, count in (("rows", self.batch_size), ("spare rows", self.spare_per_step)):
            if count % world_size:
                raise UserError(
                    f"a step's {count} {name} do not divide over {world_size} processes; "
                    "choose a multiple of the number of processes"
                )
        for name, table in self.tables.items():
            if len(table) < world_size:
                raise UserError(
                    f"{name} table: got {len(table)} rows, expected at least one for each of {world_size} processes"
                )
        n_rows = len(self.tables["train"])
        spare_indices(0, 0, n_rows, step_indices(0, 0, n_rows, self.batch_size), self.spare_per_step)

    @abstractmethod
    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Return the batch made of these rows; the number of each is its column `_row`."""

    def collate_training(self, rows: list[dict[str, Any]]) -> Any:
        """Return the batch of a training step; its spare rows come last."""
        return self.collate(rows)

    def setup(self, stage: str) -> None:
        """Check the trainer, before models are loaded; read the tables once and check the text of every row."""
        if self.trainer is not None:
            check_trainer(self.trainer)
        self._read_tables()

    def _read_tables(self) -> None:
        for name, path in self.paths.items():
            if path is not None and name not in self.tables:
                table = read_table(path, self.required_columns(), self.csv_types)
                if "_row" in table.columns:
                    raise UserError(f"{table.name}: the column name '_row' is taken; rename it")
                self.rows.check(table)
                self.tables[name] = table

    def train_dataloader(self) -> DataLoader:
        """Return a batch for each training step that is still to do."""
        trainer, table = self.trainer, self.tables["train"]
        assert trainer is not None
        self.check(trainer.world_size)
        if trainer.max_steps < 1:
            raise UserError(f"no length: got trainer.max_steps {trainer.max_steps}, expected at least 1")
        # One Lightning epoch is the whole run, so that a step's rows depend on nothing but the step.
        done = batches_begun(trainer)
        steps = batches_of_run(trainer, trainer.lightning_module)
        sampler = StepSampler(
            len(table),
            self.batch_size,
            resolve_seed(self.seed),
            done,
            steps,
            trainer.global_rank,
            trainer.world_size,
            self.spare_per_step,
        )
        return DataLoader(table, batch_sampler=sampler, collate_fn=self.collate_training)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the validation table in order, dealt out to the ranks row by row; nothing where there is none."""
        return self._in_order("validation")

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the test table in order, dealt out to the ranks row by row.

        Raises:
            UserError: no test table is named.
        """
        if "test" not in self.tables:
            raise UserError("no test table: got test null, expected a file; add `test: FILE` under `data.init_args`")
        return self._in_order("test")

    def _in_order(self, name: str) -> DataLoader | list[DataLoader]:
        if name not in self.tables:
            return []
        trainer, table = self.trainer, self.tables[name]
        assert trainer is not None
        mine = Subset(table, range(trainer.global_rank, len(table), trainer.world_size))
        return DataLoader(mine, batch_size=self.validation_batch_size, collate_fn=self.collate)


class PromptDataModule(TextDataModule):
    """Prompts for policy optimisation, with the columns that the reward functions read."""

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        prompts_per_step: int = 8,
        validation_batch_size: int = 64,
        prompt_column: str = "prompt",
        columns: list[str] | None = None,
        spare_prompts_per_step: int = 0,
        seed: int | None = None,
        csv_types: dict[str, CSVType] | None = None,
        conversations: Conversations = Conversations(),  # noqa: B008  a frozen value
    ) -> None:
        """Name the tables.

        Args:
            train: JSONL, CSV or Parquet file of training prompts.
            validation: held-out prompts; None: no held-out evaluation.
            test: prompts for `grpovi test`.
            prompts_per_step: P, over all processes.
            validation_batch_size: held-out prompts sampled at once.
            prompt_column: the column that holds the prompt.
            columns: columns handed to reward functions; None: every column but the prompt's.
            spare_prompts_per_step: further prompts handed out with each step, over all processes, for
                `DynamicResampling`; they do not change which prompts a step starts with.
            seed: orders the prompts; None: the run's `seed_everything`.
            csv_types: column of the CSV files -> `int`, `float` or `bool`; the others are text. An empty cell of such a
                column is None.
            conversations: how prompts become messages for a chat model.
        """
        super().__init__(train, validation, test, prompts_per_step, validation_batch_size, seed)
        self.rows, self.columns = PromptRows(prompt_column, conversations), columns
        if spare_prompts_per_step < 0:
            raise UserError(f"spare_prompts_per_step: got {spare_prompts_per_step}, expected at least 0")
        self.spare_per_step = spare_prompts_per_step
        if csv_types and not any(path and path.lower().endswith(".csv") for path in self.paths.values()):
            raise UserError(f"csv_types: got {csv_types} without a CSV file, expected one to read; leave it out")
        self.csv_types = csv_types or {}

    def required_columns(self) -> list[str]:
        return self.columns or []

    def handed_over(self, columns: Iterable[str]) -> list[str]:
        """Return which of a table's columns reward functions get."""
        if self.columns is not None:
            return self.columns
        return [name for name in columns if name not in (self.rows.prompt, "_row")]

    def collate(self, rows: list[dict[str, Any]]) -> PromptBatch:
        return PromptBatch(
            contents=[self.rows.roles(row)["prompt"] for row in rows],  # type: ignore[misc]
            indices=torch.tensor([row["_row"] for row in rows]),
            columns={name: [row[name] for row in rows] for name in self.handed_over(rows[0])},
        )

    def collate_training(self, rows: list[dict[str, Any]]) -> PromptBatch:
        spare = len(rows) * self.spare_per_step // (self.batch_size + self.spare_per_step)
        if spare == 0:
            return self.collate(rows)
        return replace(self.collate(rows[:-spare]), spare=self.collate(rows[-spare:]))


class TextTupleDataModule(TextDataModule):
    """Rows of which each is a few texts or conversations with different roles, and nothing else."""

    def collate(self, rows: list[dict[str, Any]]) -> TextPairs:
        parts = [self.rows.roles(row) for row in rows]
        return {role: [part[role] for part in parts] for role in parts[0]}

    def transfer_batch_to_device(self, batch: TextPairs, device: torch.device, dataloader_idx: int) -> TextPairs:
        """Return the batch: it has no tensors, and Lightning, looking for some, refuses frozen dataclasses."""
        return batch


class DemonstrationDataModule(TextTupleDataModule):
    """Prompts with completions to imitate; a batch has the roles "prompt" and "completion"."""

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        batch_size: int = 64,
        validation_batch_size: int = 64,
        prompt_column: str = "prompt",
        completion_column: str = "completion",
        messages_column: str = "messages",
        seed: int | None = None,
        conversations: Conversations = Conversations(),  # noqa: B008  a frozen value
    ) -> None:
        """Name the tables and their columns; `batch_size` counts rows over all processes.

        `messages_column` holds whole conversations, in tables without a column of prompts.
        """
        super().__init__(train, validation, test, batch_size, validation_batch_size, seed)
        self.rows = DemonstrationRows(prompt_column, conversations, completion_column, messages_column)


class PreferenceDataModule(TextTupleDataModule):
    """Prompts with a preferred and another completion; a batch has the roles "prompt", "chosen" and "rejected"."""

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        batch_size: int = 32,
        validation_batch_size: int = 64,
        prompt_column: str = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        seed: int | None = None,
        conversations: Conversations = Conversations(),  # noqa: B008  a frozen value
    ) -> None:
        """Name the tables and their columns; `batch_size` counts pairs over all processes.

        In tables without a column of prompts, both answers begin with the prompt.
        """
        super().__init__(train, validation, test, batch_size, validation_batch_size, seed)
        self.rows = PreferenceRows(prompt_column, conversations, chosen_column, rejected_column)
