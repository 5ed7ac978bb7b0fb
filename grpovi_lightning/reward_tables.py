"""Tables of rewards in CSV and Parquet files, read and written without losing a digit.

Read without pandas: its data frames pad short CSV rows unasked, and turn some Parquet types into others.
"""

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpovi_lightning.errors import UserError

READER_GONE = 141
"""Exit status when the reader of standard output closed it: 128 + SIGPIPE, as shells count."""
ADJUSTED = "adjusted"
"""The column that is written."""
_ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class RewardTable:
    """A table as it was read.

    Attributes:
        file: where it was read from.
        columns: N rows; all text if it was CSV.
        unit: what a place is called, "line" or "row".
        places: N numbers that tell a row's place in the file.
    """

    file: Path
    columns: pa.Table
    unit: str
    places: Sequence[int]

    def error(self, row: int, message: str) -> UserError:
        """The error about one row, counted from 0."""
        return UserError(f"{self.file}, {self.unit} {self.places[row]}: {message}")


def read_rewards(file: Path) -> RewardTable:
    """Reads a table with the columns `group` and `reward`; all values of a CSV file are text.

    Raises:
        UserError: the file is missing, cannot be read or has no rows, or its columns are not those expected.
    """
    ending = file.suffix.lower()
    if ending not in _ENDINGS:
        raise UserError(f"{file}: got ending {file.suffix!r}, expected {' or '.join(_ENDINGS)}")
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected CSV or Parquet with the columns group and reward")
    try:
        table = _read_csv(file) if ending == ".csv" else _read_parquet(file)
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # what the readers raise for bad content
        raise UserError(f"{file}: cannot be read: {error}") from error
    _check_columns(file, table.columns.column_names)
    if table.columns.num_rows == 0:
        raise UserError(f"{file}: no rows; expected at least one")
    return table


def _read_csv(file: Path) -> RewardTable:
    """Every value as its text: numbers would lose their leading zeros, and blanks would become NaN."""
    rows, lines, start = [], [], 1
    default = csv.field_size_limit(2**31 - 1)  # a completion may be longer than the usual 131,072 characters
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for row in reader:
                if row:  # blank lines are no rows
                    rows.append(row)
                    lines.append(start)
                start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}, line {start}: no valid CSV ({error})") from error
    finally:
        csv.field_size_limit(default)
    if not rows:
        raise UserError(f"{file}: no rows; expected a header and at least one")
    header, rows = rows[0], rows[1:]
    _check_columns(file, header)
    for row, line in zip(rows, lines[1:], strict=True):
        if len(row) != len(header):
            raise UserError(f"{file}, line {line}: got {len(row)} values, expected {len(header)} as in the header")
    values = zip(*rows, strict=True) if rows else [()] * len(header)
    columns = [pa.array(column, pa.string()) for column in values]
    return RewardTable(file, pa.table(columns, names=header), "line", lines[1:])


def _read_parquet(file: Path) -> RewardTable:
    with pq.ParquetFile(file) as parquet:
        columns = parquet.read()
    return RewardTable(file, columns, "row", range(1, columns.num_rows + 1))


def _check_columns(file: Path, names: list[str]) -> None:
    for name in ("group", "reward"):
        if name not in names:
            raise UserError(f"{file}: no column {name!r}, it has {', '.join(names)}; rename the column that is meant")
    if ADJUSTED in names:
        raise UserError(f"{file}: has a column {ADJUSTED!r} already, which would be written; rename or remove it")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{file}: got {count} columns {name!r}, expected one; rename or remove the others")


def checked_ending(output: Path) -> str:
    """The ending of an output that can be written.

    Raises:
        UserError: the ending is unknown, the file exists, or its folder does not.
    """
    ending = output.suffix.lower()
    if ending not in _ENDINGS:
        raise UserError(f"output {output}: got ending {output.suffix!r}, expected {' or '.join(_ENDINGS)}")
    if os.path.lexists(output):
        raise UserError(f"output {output}: exists already and is not overwritten; choose another name or remove it")
    if not output.parent.is_dir():
        raise UserError(f"output {output}: no such folder {output.parent}; make it first")
    return ending


def csv_bytes(columns: pa.Table) -> bytes:
    """CSV in UTF-8; floats with as many digits as it takes to read the same float64 back."""
    rows = list(zip(*(column.to_pylist() for column in columns.columns), strict=True))
    text = _csv_text([columns.column_names, *rows], csv.QUOTE_MINIMAL)
    if "\r" in text:  # inside a value; quoting no more than needed leaves it bare, and readers take it for a line end
        text = _csv_text([columns.column_names, *rows], csv.QUOTE_ALL)
    return text.encode()


def _csv_text(rows: list[Sequence[Any]], quoting: Any) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n", quoting=quoting).writerows(rows)
    return buffer.getvalue()


def parquet_bytes(columns: pa.Table) -> bytes:
    """Parquet, with the metadata of the table."""
    buffer = pa.BufferOutputStream()
    pq.write_table(columns, buffer)
    return buffer.getvalue().to_pybytes()


def deliver(content: bytes, output: Path | None) -> int:
    """Writes the content to a new file, or to standard output; returns the exit status.

    Raises:
        UserError: it cannot be written, or the file exists. No part of a file is left behind.
    """
    if output is None:
        return _print_bytes(content)
    try:
        with output.open("xb") as stream:
            try:
                stream.write(content)
                stream.flush()
            except BaseException:
                output.unlink()
                raise
    except OSError as error:
        raise UserError(f"output {output}: cannot be written: {error.strerror or error}") from error
    return 0


def _print_bytes(content: bytes) -> int:
    try:
        sys.stdout.buffer.write(content)  # bytes: UTF-8 and line ends as they are, whatever the terminal's
        sys.stdout.buffer.flush()
    except OSError as error:
        # What is left in the buffer goes nowhere, or Python would fail on it once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return READER_GONE
        raise UserError(f"standard output: cannot be written: {error.strerror or error}") from error
    return 0
