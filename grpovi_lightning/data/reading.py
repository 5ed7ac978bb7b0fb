"""A source as the table of the rows that it means."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from grpovi_lightning.data.hub import read_hub
from grpovi_lightning.data.local import read_local
from grpovi_lightning.data.sources import Source, TableSource
from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import sample_order

CSVType = Literal["int", "float", "bool"]
"""What the text of a CSV column is turned into."""

_CONVERSIONS: dict[CSVType, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
}

_log = logging.getLogger(__name__)


def read_table(source: TableSource, required: Sequence[str], csv_types: Mapping[str, CSVType] | None = None) -> Table:
    """Read the rows that a source means.

    Values are those of the file: of JSON as `json` reads them, None where a row lacks the column; of CSV text, an
    empty cell being empty text; of Parquet, saved folders and the hub as `datasets` gives them. Nothing of local files
    is cached.

    Args:
        source: what to read; its path alone will do.
        required: columns that must be there, after renaming.
        csv_types: column of a CSV file, after renaming -> its type, if it is not text; an empty cell is then None.

    Raises:
        UserError: the source is missing, cannot be read, is empty or does not have what is asked for, a required column
            is missing, or a value is not of its column's type.
    """
    wanted = Source(source)
    table = _read(wanted)
    n_rows = len(table)
    table = _chosen(table, wanted).rename(wanted.rename)
    if "_row" in table.columns:
        raise UserError(f"{table.name}: the column name '_row' is taken; rename it")
    typed = (csv_types or {}) if table.kind == "CSV" else {}
    table.require([*required, *typed])
    for column, kind in typed.items():
        _convert(table, column, kind)
    files = f", {len(table.files)} files" if table.files else ""
    count = f"{len(table)} rows" if len(table) == n_rows else f"{len(table)} of {n_rows} rows that were read"
    _log.info(f"{table.name}: {count} ({table.kind}{files}), columns {', '.join(table.columns)}")
    return table


def _read(source: Source) -> Table:
    limit = _limit(source)
    try:
        table = read_local(source, limit) if source.is_local else read_hub(source, limit)
    except UserError:  # a ValueError, too
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # what the readers raise for bad content
        raise UserError(f"data file {source.path}: cannot be read: {' '.join(str(error).split())}") from error
    if len(table) == 0:
        raise UserError(f"{table.name}: no rows; expected at least one")
    return table


def _limit(source: Source) -> int | None:
    """Return how many rows have to be read; None: all."""
    if not source.streaming:
        return None
    assert source.max_rows is not None
    start, stop = source.row_range.bounds(0)
    return start + source.max_rows if source.row_range.stop is None else min(start + source.max_rows, stop)


def _chosen(table: Table, source: Source) -> Table:
    """Return the rows of a split that a source means.

    Raises:
        UserError: they are not there.
    """
    rows, n_rows = source.row_range, len(table)
    start, stop = rows.bounds(n_rows)
    if source.streaming:
        stop = min(stop, start + (source.max_rows or 0))
    if not 0 <= start < stop <= n_rows:
        raise UserError(
            f"{table.name}: split: got the rows {rows}, which are {start} to {stop - 1} counted from 0, of {n_rows}; "
            "choose at least one, and none that is not there"
        )
    chosen = list(range(start, stop))
    if source.shuffle_seed is not None:
        chosen = [chosen[i] for i in sample_order(source.shuffle_seed, len(chosen))]
    chosen = chosen[: source.max_rows]
    return table if len(chosen) == n_rows and source.shuffle_seed is None else table.select(chosen)


def _convert(table: Table, column: str, kind: CSVType) -> None:
    """Turn the text of a column into numbers or truth values, None where a cell is empty."""
    assert isinstance(table.rows, list), "rows of a CSV file"
    for number, row in enumerate(table.rows):
        try:
            row[column] = None if row[column] == "" else _CONVERSIONS[kind](row[column])
        except (ValueError, KeyError):
            raise table.refuse(number, column, f"{kind}, as csv_types says") from None
