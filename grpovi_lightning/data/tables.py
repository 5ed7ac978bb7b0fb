"""Tables of text from disk, whose values are what the file says."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, load_from_disk

from grpovi_lightning.csv_rows import read_csv
from grpovi_lightning.errors import UserError

CSVType = Literal["int", "float", "bool"]
"""What the text of a CSV column is turned into."""

_CONVERSIONS: dict[CSVType, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}


@dataclass(frozen=True, eq=False)
class Table(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows, each a dictionary with all columns and its number, from 0, as `_row`.

    Attributes:
        name: what messages call it.
        columns: their names.
        rows: dictionaries, or the rows of a file that `datasets` reads as they are asked for.
        lines: where each row stands in a text file.
    """

    name: str
    columns: list[str]
    rows: list[dict[str, Any]] | Dataset
    lines: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.rows[row], "_row": row}

    def column(self, name: str) -> list[Any]:
        """Return the values of one column."""
        if isinstance(self.rows, Dataset):
            batches = self.rows.select_columns(name).iter(1000)
            return [value for batch in batches for value in batch[name]]  # type: ignore[call-overload]
        return [row[name] for row in self.rows]

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
        place = "counted from 0" if self.lines is None else f"line {self.lines[row]}"
        more = f"; {count} rows are wrong" if count > 1 else ""
        return UserError(f"{self.name}: {column} in row {row} ({place}): {fault}{more}")

    def refuse(self, row: int, column: str, expected: str) -> UserError:
        """Return the error about a value that is not what was expected."""
        return self.fault(row, column, f"got {shown(self[row][column])}, expected {expected}")


def fault_in_text(value: Any, may_be_empty: bool) -> str | None:
    """Return what is wrong with a value that should be text which a tokenizer can read; None where nothing is."""
    if not isinstance(value, str):
        return f"got {shown(value)}, expected text; are the column names right?"
    if not (value or may_be_empty):
        return f"got {shown(value)}, expected text that is not empty; remove the row"
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return f"got {shown(value)}, expected whole characters; mend or remove the row"
    return None


def shown(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_table(path: str, required: Sequence[str], csv_types: Mapping[str, CSVType] | None = None) -> Table:
    """Read a JSONL, CSV or Parquet file, or a folder written by `Dataset.save_to_disk`.

    Values are those of the file: of JSONL as `json` reads them, None where a row lacks the column; of CSV text, an
    empty cell being empty text; of Parquet and saved folders as `datasets` gives them. Nothing is cached.

    Args:
        path: the file or folder.
        required: columns that must be there.
        csv_types: column of a CSV file -> its type, if it is not text; an empty cell is then None.

    Raises:
        UserError: the file is missing, cannot be read or is empty, a required column is missing, or a value is not of
            its column's type.
    """
    file, name = Path(path), f"data file {path}"
    if not file.exists():
        raise UserError(f"{name}: no such file; expected JSONL, CSV, Parquet or a saved `datasets` folder")
    try:
        table = _read(file, name)
    except UserError:  # a ValueError, too
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # what the readers raise for bad content
        raise UserError(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
    if len(table) == 0:
        raise UserError(f"{name}: no rows; expected at least one")
    typed = (csv_types or {}) if file.suffix.lower() == ".csv" else {}
    table.require([*required, *typed])
    for column, kind in typed.items():
        _convert(table, column, kind)
    return table


def _read(file: Path, name: str) -> Table:
    if file.is_dir():
        folder = load_from_disk(str(file))
        if not isinstance(folder, Dataset):
            raise UserError(f"data folder {file}: holds several splits; name one of its sub-folders")
        # It may have been saved in a format that gives tensors, or leaves columns out.
        return Table(name, folder.column_names, folder.with_format(None))
    match file.suffix.lower():
        case ".jsonl" | ".json":
            rows, lines = _json_lines(file, name)
            columns = list(dict.fromkeys(column for row in rows for column in row))
            return Table(name, columns, [{column: row.get(column) for column in columns} for row in rows], lines)
        case ".csv":
            columns, values, lines = read_csv(file, name)
            return Table(name, columns, [dict(zip(columns, row, strict=True)) for row in values], lines)
        case ".parquet":
            # Not `Dataset.from_parquet`, whose cache takes files of one size and time for the same.
            with pq.ParquetFile(file) as parquet:
                stored = Dataset(parquet.read())
            return Table(name, stored.column_names, stored)
    raise UserError(f"{name}: got ending {file.suffix!r}, expected .jsonl, .csv or .parquet")


def _convert(table: Table, column: str, kind: CSVType) -> None:
    """Turn the text of a column into numbers or truth values, None where a cell is empty."""
    assert isinstance(table.rows, list), "rows of a CSV file"
    for number, row in enumerate(table.rows):
        try:
            row[column] = None if row[column] == "" else _CONVERSIONS[kind](row[column])
        except (ValueError, KeyError):
            raise table.refuse(number, column, f"{kind}, as csv_types says") from None


def _json_lines(file: Path, name: str) -> tuple[list[dict[str, Any]], list[int]]:
    rows, numbers = [], []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
                raise UserError(f"{name}, line {number}: no valid JSON ({error}); one object a line") from None
            if not isinstance(row, dict):
                raise UserError(f"{name}, line {number}: got {type(row).__name__}, expected a JSON object")
            rows.append(row)
            numbers.append(number)
    return rows, numbers
