"""A table on disk that is computed some rows at a time, and goes on where it was."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import track

from grpovi_lightning.run_record.layout import replace_file

_PARTS = "parts"


def table_in_parts(
    file: Path, blocks: Sequence[list[int]], compute: Callable[[list[int]], pd.DataFrame], what: str
) -> pd.DataFrame:
    """Compute the parts that are not there yet, each saved as soon as it is known, and write all as one file.

    Args:
        file: the Parquet file of the whole table; meanwhile the parts stand in a folder beside it.
        blocks: the rows of each part.
        compute: rows -> their part of the table.
        what: what the progress bar calls it.
    """
    folder = file.parent / _PARTS
    parts = {folder / f"{number:05d}.parquet": rows for number, rows in enumerate(blocks, start=1)}
    missing = [part for part in parts if not part.exists()]
    for part in track(missing, what, console=Console(stderr=True)):
        replace_file(part, compute(parts[part]).to_parquet(index=False))
    whole = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    replace_file(file, whole.to_parquet(index=False))
    for part in parts:
        part.unlink()
    folder.rmdir()
    return whole
