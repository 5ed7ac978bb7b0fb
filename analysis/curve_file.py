"""Every value of every run as one file, for other programs."""

from io import BytesIO

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from analysis.tables import rows_where

CURVES_CSV = "curves.csv"
CURVES_PARQUET = "curves.parquet"
MOST_CSV_ROWS = 1_000_000
"""About 80 MB. Larger studies are written as Parquet, a twentieth of the size; pandas, R and DuckDB read it."""

_COLUMNS = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("run", pa.string()),
        ("counts", pa.string()),
        ("metric", pa.string()),
        ("step", pa.int64()),
        ("value", pa.float64()),
    ]
)


def curve_file(runs: pd.DataFrame) -> str:
    """Return the name of the file that holds the curves of so many rows."""
    return CURVES_CSV if len(runs) <= MOST_CSV_ROWS else CURVES_PARQUET


def outdated_curve_file(runs: pd.DataFrame) -> str:
    """Return the name of the file of the other kind, as of when the study had another size."""
    return CURVES_PARQUET if curve_file(runs) == CURVES_CSV else CURVES_CSV


def curves_content(runs: pd.DataFrame, status: pd.DataFrame) -> bytes:
    """Return the content of `curve_file`: all values, none left out.

    Args:
        runs: As from `load_runs`.
        status: The runs that are compared, with the `reason` where one does not count.

    Returns:
        A table with `arm`, `seed`, `run`, `counts` (yes where the report compares the run, else no), `metric`, `step`,
        `value`.
    """
    counted = rows_where(status, status["reason"].isna())["run"]
    counts = pd.Categorical.from_codes(runs["run"].isin(counted).to_numpy().astype(np.int8), ["no", "yes"])
    names = [name for name in _COLUMNS.names if name != "counts"]
    table = pa.Table.from_pandas(runs[names].assign(counts=counts)[_COLUMNS.names], preserve_index=False)
    content = BytesIO()
    if curve_file(runs) == CURVES_CSV:
        csv.write_csv(table.cast(_COLUMNS), content)
    else:
        parquet.write_table(table.replace_schema_metadata(None), content, compression="zstd")
    return content.getvalue()
