"""What was read of a run's logs, kept as Parquet: found again only under the key of the very same logs.

A file that cannot be read, belongs to other logs, or was damaged on the disk is as good as none: the logs are read
again. One that cannot be written, as in a folder that others own, is left out. It holds data only: reading it runs no
code.
"""

import json
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.scalars import RunScalars, scalar_table
from grpovi_lightning.run_record.layout import replace_file

_NOTE = b"grpovi"
"""Key of the file's metadata under which its own key and the notes on the logs stand."""
_SCHEMA = pa.schema(
    [
        ("metric", pa.dictionary(pa.int32(), pa.string())),
        ("step", pa.int64()),
        ("value", pa.float64()),
        ("wall_time", pa.float64()),
    ]
)


def cached(path: Path, key: str) -> RunScalars | None:
    """Return what was kept under `key`, or None where there is no such file or it is not whole."""
    try:
        table = pq.read_table(path, page_checksum_verification=True, use_threads=False)
        note = json.loads((table.schema.metadata or {})[_NOTE])
        if note["key"] != key or note["rows"] != len(table) or not table.schema.equals(_SCHEMA):
            return None
        metric, *numbers = (column.combine_chunks() for column in table.columns)
        codes = metric.indices.to_numpy()
        names = pd.Index(metric.dictionary.to_pylist(), dtype="str")
        metrics = pd.Categorical.from_codes(codes, categories=names)
        return RunScalars(
            scalar_table(metrics, *(column.to_numpy() for column in numbers)), torn_tail=note["torn_tail"]
        )
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError):
        return None  # whatever is wrong with it: the logs themselves are there


def keep(found: RunScalars, path: Path, key: str) -> None:
    """Keep what was read of logs that are not damaged; where the folder cannot be written to, do nothing."""
    if found.damage is not None:
        return
    note = {"key": key, "rows": len(found.table), "torn_tail": found.torn_tail}
    names = pa.array(found.table["metric"].cat.categories.to_numpy(dtype=object), pa.string())
    codes = pa.array(found.table["metric"].cat.codes.to_numpy().astype("int32"))
    numbers = [pa.array(found.table[name].to_numpy()) for name in _SCHEMA.names[1:]]
    columns = [pa.DictionaryArray.from_arrays(codes, names), *numbers]
    table = pa.Table.from_arrays(columns, schema=_SCHEMA.with_metadata({_NOTE: json.dumps(note)}))
    content = BytesIO()
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    with suppress(OSError):
        replace_file(path, content.getvalue())
