"""Files on this machine as tables: JSON, CSV and Parquet, several files as one, folders saved by `datasets`.

Values are those of the file, and nothing is cached.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from grpovi_lightning.csv_rows import read_csv
from grpovi_lightning.data.sources import format_of
from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError

_BLANKS = re.compile(r"\s*")


class TextRows(NamedTuple):
    """Rows of a text file, each with the line on which it begins."""

    columns: list[str]
    rows: list[dict[str, Any]]
    lines: list[int]


def read_files(files: Sequence[Path], name: str, limit: int | None = None) -> Table:
    """Read files of one format and one set of columns as one table, in this order.

    Args:
        files: one or more.
        name: what messages call all of them.
        limit: read so many rows at most, and no file beyond them; None: all.

    Raises:
        UserError: the files differ, or one is not in order. What the readers raise for bad content passes through.
    """
    kinds = {file: format_of(file) for file in files}
    for file, kind in kinds.items():
        if kind is None:
            raise UserError(
                f"data file {file}: got ending {file.suffix!r}, expected .jsonl, .json or .csv, also with .gz or .zst, "
                "or .parquet"
            )
        if kind != kinds[files[0]]:
            raise UserError(f"{name}: got {files[0].name} and {file.name}, expected files of one format")
    kind = kinds[files[0]] or ""
    return _read_parquet(files, name, limit) if kind == "Parquet" else _read_text(files, name, kind, limit)


def _read_text(files: Sequence[Path], name: str, kind: str, limit: int | None) -> Table:
    read = _json_rows if kind == "JSON" else _csv_rows
    columns, rows, lines, starts, first = [], [], [], [], files[0]
    for file in files:
        left = None if limit is None else limit - len(rows)
        if left == 0:
            break
        found = read(file, f"data file {file}", left)
        if not rows:
            columns, first = found.columns, file
        elif found.rows:
            _check_columns(name, first, columns, file, found.columns)
        starts.append((len(rows), file.name))
        rows += found.rows
        lines += found.lines
    return Table(name, kind, columns, rows, range(len(rows)), lines, starts if len(files) > 1 else ())


def _check_columns(name: str, first: Path, expected: Sequence[str], file: Path, got: Sequence[str]) -> None:
    if set(got) != set(expected):
        raise UserError(
            f"{name}: {file.name} has the columns {', '.join(got)}, but {first.name} has {', '.join(expected)}; read "
            "files with the same columns"
        )


def opened(file: Path, newline: str | None = None) -> TextIO:
    """Open UTF-8 text, decompressed where the name ends so; a byte order mark is no part of it."""
    codec = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
    return io.TextIOWrapper(pa.input_stream(str(file), compression=codec), "utf-8-sig", newline=newline)


def _csv_rows(file: Path, name: str, limit: int | None) -> TextRows:
    with opened(file, newline="") as text:
        columns, rows, lines = read_csv(text, name, limit)
    return TextRows(columns, [dict(zip(columns, row, strict=True)) for row in rows], lines)


def _json_rows(file: Path, name: str, limit: int | None) -> TextRows:
    """Read one object a line, or one array of objects; a row has None for a column that it lacks."""
    rows, lines = [], []
    with opened(file) as text:
        for value, line in islice(_json_values(text, name), limit):
            if not isinstance(value, dict):
                raise UserError(f"{name}, line {line}: got {type(value).__name__}, expected a JSON object")
            rows.append(value)
            lines.append(line)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return TextRows(columns, [{column: row.get(column) for column in columns} for row in rows], lines)


def _json_values(text: TextIO, name: str) -> Iterator[tuple[Any, int]]:
    numbered = ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    for i, (number, line) in enumerate(numbered):
        if i == 0 and line.lstrip().startswith("["):
            yield from _array(line + text.read(), name, number)
            return
        try:
            yield json.loads(line), number
        except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
            raise UserError(f"{name}, line {number}: no valid JSON ({error}); one object a line") from None


def _array(text: str, name: str, first_line: int) -> Iterator[tuple[Any, int]]:
    """Yield the values of the JSON array that a text is, each with its line."""
    decoder, counted, line = json.JSONDecoder(), 0, first_line
    place = _skip(text, text.index("[") + 1)
    closed = text.startswith("]", place)
    while not closed:
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _no_array(name, line, error) from None
        yield value, line
        place = _skip(text, place)
        closed = text.startswith("]", place)
        if not closed and not text.startswith(",", place):
            raise _no_array(name, line, "neither a comma nor the end of the array follows the object")
        place = place if closed else _skip(text, place + 1)
    if _skip(text, place + 1) != len(text):
        raise _no_array(name, line, "something follows the array")


def _skip(text: str, place: int) -> int:
    """Return the place of the next character that is no white space."""
    blanks = _BLANKS.match(text, place)
    return place if blanks is None else blanks.end()


def _no_array(name: str, line: int, problem: object) -> UserError:
    return UserError(f"{name}, line {line}: no valid JSON ({problem}); one array of objects, or one object a line")


def _read_parquet(files: Sequence[Path], name: str, limit: int | None) -> Table:
    tables, starts, n_rows = [], [], 0
    for file in files:
        if limit is not None and n_rows >= limit:
            break
        # Not `Dataset.from_parquet`, whose cache takes files of one size and time for the same.
        with pq.ParquetFile(file) as parquet:
            table = parquet.read() if limit is None else _first_rows(parquet, limit - n_rows)
        if tables:
            _check_schema(name, files[0], tables[0].schema, file, table.schema)
        tables.append(table)
        starts.append((n_rows, file.name))
        n_rows += table.num_rows
    stored = Dataset(tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default"))
    return Table(name, "Parquet", stored.column_names, stored, range(n_rows), None, starts if len(files) > 1 else ())


def _first_rows(parquet: pq.ParquetFile, limit: int) -> pa.Table:
    batches, n_rows = [], 0
    for batch in parquet.iter_batches(batch_size=min(limit, 10_000)):
        batches.append(batch)
        n_rows += batch.num_rows
        if n_rows >= limit:
            break
    return pa.Table.from_batches(batches, parquet.schema_arrow).slice(0, limit)


def _check_schema(name: str, first: Path, expected: pa.Schema, file: Path, got: pa.Schema) -> None:
    _check_columns(name, first, expected.names, file, got.names)
    for field in got:
        kinds = {field.type, expected.field(field.name).type} - {pa.null()}  # a column without values has no type
        if len(kinds) > 1:
            raise UserError(
                f"{name}: {field.name} is {field.type} in {file.name}, but {expected.field(field.name).type} in "
                f"{first.name}; read files with the same types"
            )
