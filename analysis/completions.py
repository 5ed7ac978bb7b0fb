"""The completions that runs kept -> one table."""

import warnings
from collections.abc import Collection
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.errors import ReportError
from analysis.loading import RunFolder, find_runs
from grpovi_lightning.run_record.completions import COLUMNS, HELD_OUT, TRAIN, parts_of, read_part
from grpovi_lightning.run_record.layout import COMPLETIONS_FOLDER, RecordError
from grpovi_lightning.run_record.status import read_status

RUN = ["arm", "seed", "run", "split", "set"]


def load_completions(path: str | Path, split: str | None = None) -> pd.DataFrame:
    r"""Load every completion that the runs below `path` kept.

    A run that is under way, or was killed, is read up to its last whole step. Runs whose completions are missing are
    named in a warning.

    Args:
        path: A study folder, a folder of runs, or one run, as for `load_runs`.
        split: `train` or `held_out`; None: both.

    Returns:
        One row a completion: `arm`, `seed`, `run`, `split`, `set` (name of the held-out set; empty of one without a
        name, and of training), then `step`, `prompt_id`, `row`, `member`, `prompt`, `completion`, `reward`, a column
        `rewards/<name>` for each component of the reward, `adjusted`, `advantage`, `length` (tokens), `truncated`,
        `logprob` and `ref_logprob` (nats), `kl` (nats a token) and `ids` (tokens). Held-out rows have neither adjusted
        reward nor advantage; `ref_logprob` and `kl` are missing where the run had no reference policy. Half of a
        surrogate pair is written as `\ud800`, six characters.
        `grpovi_lightning.run_record.completions.COLUMNS` describes each.

    Raises:
        ReportError: `path` is no folder, there is no run in it, no run kept completions, or a file is damaged.
    """
    if split not in (None, TRAIN, HELD_OUT):
        raise ReportError(f"split: got {split!r}, expected {TRAIN!r}, {HELD_OUT!r}, or None for both")
    tables, without = [], []
    for folder in find_runs(path):
        try:
            table = read_run(folder, split)
        except RecordError as error:
            raise ReportError(str(error)) from error
        if table.empty:
            without.append(folder.run)
        else:
            tables.append(table)
    kind = "" if split is None else f"{split} "
    if not tables:
        raise ReportError(
            f"{path}: no run in it has {kind}completions; expected files in <run>/{COMPLETIONS_FOLDER}/, as "
            "`grpovi fit` writes them for GRPO unless `completions: {max_megabytes: 0}`"
        )
    if without:
        warnings.warn(f"no {kind}completions of {', '.join(without)}", stacklevel=2)
    return in_order(pd.concat(tables, ignore_index=True))


def read_run(
    folder: RunFolder,
    split: str | None = None,
    prompt_ids: Collection[str] | None = None,
    without: Collection[str] = (),
) -> pd.DataFrame:
    """Return the completions of one run, of some prompts or of all, without some columns; no row where it has none.

    Raises:
        RecordError: a file of them is damaged, or status.json is.
    """
    tables = []
    for part in parts_of(folder.path / COMPLETIONS_FOLDER):
        if split in (None, part.split):
            rows = read_part(part.path)
            if prompt_ids is not None and len(rows):
                rows = rows.filter(pc.field("prompt_id").isin(list(prompt_ids)))
            rows = rows.drop_columns([name for name in without if name in rows.column_names])
            tables.append(_labelled(rows, part.split, part.set))
    if not tables:
        return pd.DataFrame(columns=[*RUN, *COLUMNS])
    table = pa.concat_tables(tables, promote_options="default").to_pandas()
    status = read_status(folder.path)
    seed = folder.folder_seed if status is None or status.seed is None else status.seed
    return table.assign(arm=folder.arm, seed=pd.array([seed] * len(table), dtype="Int64"), run=folder.run)


def _labelled(rows: pa.Table, split: str, name: str) -> pa.Table:
    for column, value in (("split", split), ("set", name)):
        rows = rows.append_column(column, pa.array([value] * len(rows), pa.string()))
    return rows.replace_schema_metadata(None)


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns in the order that `load_completions` describes, those of all splits."""
    rewards = [name for name in table.columns if name.startswith("rewards/")]
    names = list(COLUMNS)
    names[names.index("reward") + 1 : names.index("reward") + 1] = rewards
    return table.reindex(columns=[*RUN, *names])
