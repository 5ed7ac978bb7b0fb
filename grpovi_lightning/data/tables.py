"""Tables of text from disk, as `datasets.Dataset`."""

import json
from pathlib import Path

from datasets import Dataset, load_from_disk

from grpovi_lightning.errors import UserError

_READERS = {".parquet": Dataset.from_parquet, ".csv": Dataset.from_csv}


def read_table(path: str, required: list[str]) -> Dataset:
    """Reads a JSONL, CSV or Parquet file, or a folder written by `Dataset.save_to_disk`.

    Args:
        path: the file or folder.
        required: columns that must be there.

    Raises:
        UserError: the file is missing, cannot be read or is empty, or a required column is missing.
    """
    file = Path(path)
    if not file.exists():
        raise UserError(f"data file {path}: no such file; expected JSONL, CSV, Parquet or a saved `datasets` folder")
    if file.is_dir():
        table = load_from_disk(path)
        if not isinstance(table, Dataset):
            raise UserError(f"data folder {path}: holds several splits; name one of its sub-folders")
    elif file.suffix in (".jsonl", ".json"):
        table = Dataset.from_list(_json_lines(file))
    elif file.suffix in _READERS:
        table = _READERS[file.suffix](path)
    else:
        raise UserError(f"data file {path}: got ending {file.suffix!r}, expected .jsonl, .csv or .parquet")
    assert isinstance(table, Dataset)
    if len(table) == 0:
        raise UserError(f"data file {path}: no rows; expected at least one")
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise UserError(
            f"data file {path}: no column {missing[0]!r}, it has {', '.join(table.column_names)}; "
            "set the column names in the YAML"
        )
    return table


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
