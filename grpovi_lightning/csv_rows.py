"""Rows of a CSV file as the text that stands there, with their lines."""

import csv
from collections.abc import Iterable

from grpovi_lightning.errors import UserError


def read_csv(text: Iterable[str], name: str, limit: int | None = None) -> tuple[list[str], list[list[str]], list[int]]:
    """Read every value as its text, so that `007` stays `007` and `NA` stays `NA`; blank lines are no rows.

    With Python's reader: pandas pads short rows unasked, and neither pandas nor pyarrow tells the line of a row.

    Args:
        text: lines, with their ends as they are, of comma-separated values, names of the columns in the first row.
        name: what messages call the file.
        limit: read so many rows at most; None: all.

    Returns:
        Names of the columns, rows of as many values, and the line on which each row begins. All empty for no content.

    Raises:
        UserError: it is no CSV, columns are not separated by commas or share a name, or a row has too few or too many
            values. `OSError` and `UnicodeDecodeError` of the lines pass through.
    """
    csv.field_size_limit(2**31 - 1)  # a completion may be longer than the usual 131,072 characters
    line, rows, lines = 1, [], []
    reader = csv.reader(text, strict=True)
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(line)
            if limit is not None and len(rows) > limit:  # the header is one of them
                break
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}, line {line}: no valid CSV ({error})") from error
    if not rows:
        return [], [], []
    header = rows[0]
    if len(header) == 1 and (separator := next((mark for mark in ";\t" if mark in header[0]), None)):
        raise UserError(
            f"{name}, line {lines[0]}: got columns separated by {separator!r}, expected commas; save it with commas"
        )
    check_unique(header, name)
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise UserError(f"{name}, line {line}: got {len(row)} values, expected {len(header)} as in the header")
    return header, rows[1:], lines[1:]


def check_unique(columns: list[str], name: str) -> None:
    """Raise `UserError` where columns of the file that messages call `name` share a name."""
    column = max(columns, key=columns.count)
    if columns.count(column) > 1:
        raise UserError(
            f"{name}: got {columns.count(column)} columns {column!r}, expected one; rename or remove the others"
        )
