"""Preference pairs for reward models."""

from math import isfinite
from typing import Any

from grpovi_lightning.data.base import HeldOut
from grpovi_lightning.data.conversations import Conversations
from grpovi_lightning.data.formats import PreferenceRows
from grpovi_lightning.data.modules import TextPairs, TextTupleDataModule
from grpovi_lightning.data.preparation import Preparation
from grpovi_lightning.data.sources import TableSource
from grpovi_lightning.data.tables import fault_in_text


class PreferenceDataModule(TextTupleDataModule):
    """Prompts with a preferred and another completion; a batch has the roles "prompt", "chosen" and "rejected".

    Training rows may say by how much the preferred one is better, in the role "margin". Held-out rows may belong to
    named subsets, in the role "subset".
    """

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
        conversations: Conversations = Conversations(),  # noqa: B008  a frozen value
        preparation: Preparation = Preparation(),  # noqa: B008  a frozen value
        margin_column: str | None = None,
        subset_column: str | None = None,
        completion_column: str = "completion",
        label_column: str = "label",
    ) -> None:
        """Name the tables and their columns.

        In tables without a column of prompts, both answers begin with the prompt. Tables of completions with a label
        each become pairs: of a prompt the k-th completion labelled true with the k-th labelled false; the log says how
        many rows are left over.

        Args:
            train: training pairs, a file or what else a `DataSource` names.
            validation: held-out pairs, or several sets of them by name; None: no held-out evaluation.
            test: pairs for `grpovi test`.
            batch_size: pairs of an update's batch, over all processes.
            validation_batch_size: held-out pairs scored at once.
            prompt_column: the column that holds the prompt.
            chosen_column: the column that holds the preferred completion.
            rejected_column: the column that holds the other.
            seed: orders the pairs; None: the run's `seed_everything`.
            conversations: how prompts become messages for a chat model.
            preparation: what is done to the rows before they are used.
            margin_column: numbers in the training table, see `RewardModelModule`; None: no margins.
            subset_column: texts in the held-out tables, on each of which accuracy is reported; None: no subsets.
            completion_column: the column that holds the completion, in tables without preferred ones.
            label_column: true where that completion is good.
        """
        super().__init__(train, validation, test, batch_size, validation_batch_size, seed, preparation)
        self.rows = PreferenceRows(
            prompt_column, conversations, chosen_column, rejected_column, completion_column, label_column
        )
        self.margin_column, self.subset_column = margin_column, subset_column

    def _read_tables(self) -> None:
        if self.tables:
            return
        super()._read_tables()
        for name, table in self.tables.items():
            column = self.margin_column if name == "train" else self.subset_column
            if column is None:
                continue
            table.require([column])
            for row, value in enumerate(table.column(column)):
                if name == "train" and _number(value) is None:
                    raise table.refuse(row, column, "a finite number")
                if name != "train" and (fault := fault_in_text(value, may_be_empty=False)):
                    raise table.fault(row, column, fault)

    def collate(self, rows: list[dict[str, Any]]) -> TextPairs:
        batch: TextPairs = super().collate(rows)
        if self.margin_column in rows[0]:
            batch["margin"] = [_number(row[self.margin_column]) for row in rows]
        if self.subset_column in rows[0]:
            batch["subset"] = [row[self.subset_column] for row in rows]
        return batch


def _number(value: Any) -> float | None:
    """Return the finite number that a value is, or that the text of a CSV cell says; None where there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None
