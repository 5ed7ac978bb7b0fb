"""Tables of rows that were read, each row with the number it has in its source."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from datasets import Dataset

from grpovi_lightning.conversations import has_half_characters
from grpovi_lightning.errors import UserError, shown


@dataclass(frozen=True, eq=False)
class Table(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows, each a dictionary with all columns and, as `_row`, its number in the source.

    Attributes:
        name: what messages call it.
        kind: of what it was read: "JSON", "CSV", "Parquet", "a saved folder" or "the hub".
        columns: their names.
        rows: dictionaries, or the rows of a file that `datasets` reads as they are asked for.
        ids: number of each row in the whole source, from 0. What is left out afterwards changes no other row's number.
        lines: where each row stands in its text file.
        files: of a source of several, number of the first row of each and its name.
    """

    name: str
    kind: str
    columns: list[str]
    rows: list[dict[str, Any]] | Dataset
    ids: Sequence[int]
    lines: Sequence[int] | None = None
    files: Sequence[tuple[int, str]] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.rows[row], "_row": self.ids[row]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row, number in zip(self.rows, self.ids, strict=True):
            yield {**row, "_row": number}  # type: ignore[dict-item]  # `datasets` does not say that rows are dictionaries

    def column(self, name: str) -> list[Any]:
        """Return the values of one column."""
        if isinstance(self.rows, Dataset):
            batches = self.rows.select_columns(name).iter(1000)
            return [value for batch in batches for value in batch[name]]  # type: ignore[call-overload]
        return [row[name] for row in self.rows]

    def select(self, rows: Sequence[int]) -> Self:
        """Return the rows at these places, in this order."""
        kept = self.rows.select(rows) if isinstance(self.rows, Dataset) else [self.rows[row] for row in rows]
        lines = None if self.lines is None else [self.lines[row] for row in rows]
        return replace(self, rows=kept, ids=[self.ids[row] for row in rows], lines=lines)

    def rename(self, names: dict[str, str]) -> Self:
        """Return the table with other names of columns, old -> new.

        Raises:
            UserError: an old name is not there, or two columns would share a new one.
        """
        for old, new in names.items():
            if old not in self.columns:
                raise UserError(f"{self.name}: rename: no column {old!r}, it has {', '.join(self.columns)}")
            if [names.get(column, column) for column in self.columns].count(new) > 1:
                raise UserError(
                    f"{self.name}: rename: got {old} -> {new}, but another column has that name, too; choose another"
                )
        if not names:
            return self
        columns = [names.get(column, column) for column in self.columns]
        if isinstance(self.rows, Dataset):
            return replace(self, columns=columns, rows=self.rows.rename_columns(names))
        rows = [{names.get(column, column): value for column, value in row.items()} for row in self.rows]
        return replace(self, columns=columns, rows=rows)

    def require(self, columns: Sequence[str]) -> None:
        """Raise `UserError` for the first of these columns that the table lacks."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise UserError(
                f"{self.name}: no column {missing[0]!r}, it has {', '.join(self.columns)}; set the column names in the "
                "YAML"
            )

    def fault(self, row: int, column: str, fault: str, count: int = 1) -> UserError:
        """Return the error about a value, of `count` rows in which there is something wrong."""
        more = f"; {count} rows are wrong" if count > 1 else ""
        return UserError(f"{self.name}: {column} in {self.place(row)}: {fault}{more}")

    def refuse(self, row: int, column: str, expected: str) -> UserError:
        """Return the error about a value that is not what was expected."""
        return self.fault(row, column, f"got {shown(self[row][column])}, expected {expected}")

    def place(self, row: int) -> str:
        """Return where a row stands in the source, for a message."""
        number = self.ids[row]
        where = "counted from 0" if self.lines is None else f"line {self.lines[row]}"
        if self.files:
            first, file = self.files[bisect_right(self.files, number, key=lambda item: item[0]) - 1]
            where = f"{file}, " + (f"its row {number - first}, {where}" if self.lines is None else where)
        return f"row {number} ({where})"


def fault_in_text(value: Any, may_be_empty: bool) -> str | None:
    """Return what is wrong with a value that should be text which a tokenizer can read; None where nothing is."""
    if not isinstance(value, str):
        return f"got {shown(value)}, expected text; are the column names right?"
    if not (value or may_be_empty):
        return f"got {shown(value)}, expected text that is not empty; remove the row"
    if has_half_characters(value):
        return f"got {shown(value)}, expected whole characters; mend or remove the row"
    return None
