"""Lightning data modules over tables of text. Batches are text; the modules tokenise with their model's tokenizer."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from grpovi_lightning.data.base import HeldOut, TextDataModule
from grpovi_lightning.data.preparation import Preparation
from grpovi_lightning.data.reading import CSVType
from grpovi_lightning.data.sources import TableSource
from grpovi_lightning.errors import UserError
from grpovi_lightning.structures import PromptBatch

TextPairs = dict[str, list[str]]
"""A batch for SFT or reward modelling: role ("prompt", "chosen", ...) -> one text a row."""


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
                `DynamicResampling`; they do not change which prompts a step starts with.
            seed: orders the prompts; None: the run's `seed_everything`.
            csv_types: column of the CSV files -> `int`, `float` or `bool`; the others are text. An empty cell of such a
                column is None.
            preparation: which rows are left out or held out.
        """
        super().__init__(train, validation, test, prompts_per_step, validation_batch_size, seed, preparation)
        self.prompt_column, self.columns = prompt_column, columns
        if spare_prompts_per_step < 0:
            raise UserError(f"spare_prompts_per_step: got {spare_prompts_per_step}, expected at least 0")
        self.spare_per_step = spare_prompts_per_step
        self.csv_types = csv_types or {}

    def required_columns(self) -> list[str]:
        return [self.prompt_column, *(self.columns or [])]

    def text_columns(self) -> dict[str, bool]:
        return {self.prompt_column: False}

    def prompt(self, row: dict[str, Any]) -> Any:
        return row[self.prompt_column]

    def identity(self, row: dict[str, Any]) -> Any:
        return self.prompt(row)

    def handed_over(self, columns: Iterable[str]) -> list[str]:
        """Return which of a table's columns reward functions get."""
        if self.columns is not None:
            return self.columns
        return [name for name in columns if name not in (self.prompt_column, "_row")]

    def collate(self, rows: list[dict[str, Any]]) -> PromptBatch:
        return PromptBatch(
            texts=[row[self.prompt_column] for row in rows],
            indices=torch.tensor([row["_row"] for row in rows]),
            columns={name: [row[name] for row in rows] for name in self.handed_over(rows[0])},
        )

    def collate_training(self, rows: list[dict[str, Any]]) -> PromptBatch:
        spare = len(rows) * self.spare_per_step // (self.batch_size + self.spare_per_step)
        if spare == 0:
            return self.collate(rows)
        return replace(self.collate(rows[:-spare]), spare=self.collate(rows[-spare:]))


class TextTupleDataModule(TextDataModule):
    """Rows of which each is a few texts with different roles, and nothing else."""

    names: dict[str, str]
    """Role of a text in a batch -> its column in the tables."""

    def required_columns(self) -> list[str]:
        return list(self.names.values())

    def text_columns(self) -> dict[str, bool]:
        return dict.fromkeys(self.names.values(), True)

    def prompt(self, row: dict[str, Any]) -> Any:
        return row[self.names["prompt"]]

    def collate(self, rows: list[dict[str, Any]]) -> TextPairs:
        return {role: [row[column] for row in rows] for role, column in self.names.items()}


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
        seed: int | None = None,
        preparation: Preparation = Preparation(),  # noqa: B008  a frozen value
    ) -> None:
        """Name the tables and their columns; `batch_size` counts rows over all processes."""
        super().__init__(train, validation, test, batch_size, validation_batch_size, seed, preparation)
        self.names = {"prompt": prompt_column, "completion": completion_column}

    def text_columns(self) -> dict[str, bool]:
        return super().text_columns() | {self.names["prompt"]: False}


class PreferenceDataModule(TextTupleDataModule):
    """Prompts with a preferred and another completion; a batch has the roles "prompt", "chosen" and "rejected"."""

    def __init__(
        self,
        train: TableSource,
        validation: HeldOut = None,
        test: TableSource | None = None,
        batch_size: int = 32,
        validation_batch_size: int = 64,
        prompt_column: str = "prompt",
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        seed: int | None = None,
        preparation: Preparation = Preparation(),  # noqa: B008  a frozen value
    ) -> None:
        """Name the tables and their columns; `batch_size` counts pairs over all processes."""
        super().__init__(train, validation, test, batch_size, validation_batch_size, seed, preparation)
        self.names = {"prompt": prompt_column, "chosen": chosen_column, "rejected": rejected_column}
