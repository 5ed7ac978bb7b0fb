"""Lightning data modules over tables of text or messages, which the modules tokenise with their model's tokenizer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from grpovi_lightning.data.base import HeldOut, TextDataModule
from grpovi_lightning.data.conversations import Conversations
from grpovi_lightning.data.formats import DemonstrationRows, PromptRows
from grpovi_lightning.data.preparation import Preparation
from grpovi_lightning.data.reading import CSVType
from grpovi_lightning.data.sources import TableSource
from grpovi_lightning.errors import UserError
from grpovi_lightning.structures import PromptBatch

TextPairs = dict[str, list[Any]]
"""A batch for SFT or reward modelling: role ("prompt", "chosen", ...) -> one text or conversation a row. In the role
"margin" it is one number a row."""


class PromptDataModule(TextDataModule):
    """Prompts for policy optimisation, with the columns that the reward functions read."""

    def __init__(
        self,
        train: TableSource,
        validation: HeldOut = None,
        test: TableSource | None = None,
        prompts_per_step: int = 8,
        validation_batch_size: int = 64,
        prompt_column: str = "prompt",
        columns: list[str] | None = None,
        spare_prompts_per_step: int = 0,
        seed: int | None = None,
        csv_types: dict[str, CSVType] | None = None,
        conversations: Conversations = Conversations(),  # noqa: B008  a frozen value
        preparation: Preparation = Preparation(),  # noqa: B008  a frozen value
    ) -> None:
        """Name the tables.

        Args:
            train: training prompts: the path of a file or folder, a hub name, or a `DataSource`.
            validation: held-out prompts, likewise, or several sets by name; None: no held-out evaluation.
            test: prompts for `grpovi test`.
            prompts_per_step: P, over all processes.
            validation_batch_size: held-out prompts sampled at once.
            prompt_column: the column that holds the prompt.
            columns: columns handed to reward functions; None: every column but the prompt's.
            spare_prompts_per_step: further prompts handed out with each step, over all processes, for
                `DynamicResampling` and `HistorySkipping`; they do not change which prompts a step starts with.
            seed: orders the prompts; None: the run's `seed_everything`.
            csv_types: column of the CSV files -> `int`, `float` or `bool`; the others are text. An empty cell of such a
                column is None.
            conversations: how prompts become messages for a chat model.
            preparation: which rows are left out or held out.
        """
        super().__init__(train, validation, test, prompts_per_step, validation_batch_size, seed, preparation)
        self.rows, self.columns = PromptRows(prompt_column, conversations), columns
        if spare_prompts_per_step < 0:
            raise UserError(f"spare_prompts_per_step: got {spare_prompts_per_step}, expected at least 0")
        self.spare_per_step = spare_prompts_per_step
        self.csv_types = csv_types or {}

    def required_columns(self) -> list[str]:
        return self.columns or []

    def identity(self, row: dict[str, Any]) -> Any:
        return self.rows.asked(row)

    def handed_over(self, columns: Iterable[str]) -> list[str]:
        """Return which of a table's columns reward functions get."""
        if self.columns is not None:
            return self.columns
        return [name for name in columns if name not in (self.rows.prompt, "_row")]

    def prompts(self, numbers: Sequence[int]) -> PromptBatch:
        """Return the training prompts of these numbers, those in `PromptBatch.indices`.

        Raises:
            UserError: the table has no such row, as where a run is continued with another table.
        """
        table = self.tables["train"]
        missing = [number for number in numbers if number not in table.ids]
        if missing:
            raise UserError(
                f"train table: got no row {missing[0]}, expected the one that training prompts were remembered from; "
                "continue the run with the table that it began with"
            )
        return self.collate([table[table.ids.index(number)] for number in numbers])

    def collate(self, rows: list[dict[str, Any]]) -> PromptBatch:
        return PromptBatch(
            contents=[self.rows.roles(row)["prompt"] for row in rows],  # type: ignore[misc]  # no answer
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
        train: TableSource,
        validation: HeldOut = None,
        test: TableSource | None = None,
        batch_size: int = 64,
        validation_batch_size: int = 64,
        prompt_column: str = "prompt",
        completion_column: str = "completion",
        messages_column: str = "messages",
        seed: int | None = None,
        conversations: Conversations = Conversations(),  # noqa: B008  a frozen value
        preparation: Preparation = Preparation(),  # noqa: B008  a frozen value
        label_column: str | None = "label",
    ) -> None:
        """Name the tables and their columns; `batch_size` counts rows over all processes.

        `messages_column` holds whole conversations, in tables without a column of prompts. Where `label_column` has
        truth values, rows labelled false are left out, and the log says how many; null: no column is looked at.
        """
        super().__init__(train, validation, test, batch_size, validation_batch_size, seed, preparation)
        self.rows = DemonstrationRows(prompt_column, conversations, completion_column, messages_column, label_column)
