"""Tables of text from disk, as `datasets.Dataset`."""

import json
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, load_from_disk
from datasets.exceptions import DatasetsError

from grpovi_lightning.errors import UserError

_READERS = {".parquet": Dataset.from_parquet, ".csv": Dataset.from_csv}


def read_table(path: str, required: list[str]) -> Dataset:
    """Read a JSONL, CSV or Parquet file, or a folder written by `Dataset.save_to_disk`.

    Args:
        path: the file or folder.
        required: columns that must be there.

    Raises:
        UserError: the file is missing, cannot be read or is empty, or a required column is missing.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"data file {path}: no such file; expected JSONL, CSV, Parquet or a saved `datasets` folder")
    try:
        table = _read(file)
    except UserError:  # a ValueError, too
        raise
    except (OSError, ValueError, pa.ArrowException, DatasetsError) as error:  # what the readers raise for bad content
        raise UserError(f"data file {path}: cannot be read: {_cause(error)}") from error
    if len(table) == 0:
        raise UserError(f"data file {path}: no rows; expected at least one")
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise UserError(
            f"data file {path}: no column {missing[0]!r}, it has {', '.join(table.column_names)}; "
            "set the column names in the YAML"
        )
    return table


def _read(file: Path) -> Dataset:
    if file.is_dir():
        table = load_from_disk(str(file))
        if not isinstance(table, Dataset):
            raise UserError(f"data folder {file}: holds several splits; name one of its sub-folders")
        return table
    if file.suffix in (".jsonl", ".json"):
        rows = _json_lines(file)
        # Not `from_list`, which takes the columns of the first row only.
        names = dict.fromkeys(name for row in rows for name in row)
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    if file.suffix not in _READERS:
        raise UserError(f"data file {file}: got ending {file.suffix!r}, expected .jsonl, .csv or .parquet")
    table = _READERS[file.suffix](str(file))
    assert isinstance(table, Dataset)
    return table


def _cause(error: BaseException) -> str:
    """Return the innermost message: the file's own reader knows more than "the data set could not be generated"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _json_lines(file: Path) -> list[dict]:
    rows = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"data file {file}, line {number}: no valid JSON ({error}); one object a line"
                ) from None
            if not isinstance(row, dict):
                raise UserError(f"data file {file}, line {number}: got {type(row).__name__}, expected a JSON object")
            rows.append(row)
    return rows
