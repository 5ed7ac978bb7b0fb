"""Which files on this machine a source means, and which split each belongs to."""

import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from datasets import Dataset, load_from_disk

from grpovi_lightning.data.readers import read_files
from grpovi_lightning.data.sources import Source, format_of
from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError

ONLY_SPLIT = "train"
"""The split of files that name none, as in `datasets`."""

_NAMED_SPLIT = re.compile(
    r"(?P<numbered>.+)-\d{5}-of-\d{5}|(?P<word>train|validation|valid|val|dev|test|eval)(?![a-zA-Z])"
)


def read_local(source: Source, limit: int | None) -> Table:
    """Read the split of a local source, or its first `limit` rows.

    Raises:
        UserError: there is nothing of the kind. What the readers raise for bad content passes through.
    """
    source.check_local()
    path = Path(source.path)
    if path.is_dir() and _is_saved(path):
        return _read_saved(path, source)
    files = _files(source.path)
    by_split: dict[str, list[Path]] = {}
    for file, split in zip(files, _splits(files), strict=True):
        by_split.setdefault(split, []).append(file)
    chosen = by_split[choose_split(list(by_split), source.split, f"data {source.path}")]
    several = path not in files
    return read_files(chosen, f"data {'files' if several else 'file'} {source.path}", limit)


def choose_split(splits: Sequence[str], wanted: str | None, name: str) -> str:
    """Return the split that is meant, of those there are.

    Raises:
        UserError: it is not there, or none is named and there are several.
    """
    there = ", ".join(sorted(splits))
    if wanted is None and len(splits) > 1:
        raise UserError(f"{name}: holds several splits ({there}); set `split` to one of them")
    if wanted is not None and wanted not in splits:
        raise UserError(f"{name}: got split {wanted!r}, it has {there}; set `split` to one that is there")
    return splits[0] if wanted is None else wanted


def _is_saved(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))


def _read_saved(folder: Path, source: Source) -> Table:
    name = f"data folder {source.path}"
    found = load_from_disk(str(folder))
    splits = {str(found.split or ONLY_SPLIT): found} if isinstance(found, Dataset) else dict(found)
    # It may have been saved in a format that gives tensors, or leaves columns out.
    rows = splits[choose_split([str(split) for split in splits], source.split, name)].with_format(None)
    return Table(name, "a saved folder", rows.column_names, rows, range(len(rows)))


def _files(path: str) -> list[Path]:
    """Return the files that a path means, by name; raise `UserError` where there are none."""
    file = Path(path)
    if file.is_dir():
        files = [each for each in file.iterdir() if each.is_file() and format_of(each) and each.name[0] not in "._"]
        if not files:
            raise UserError(
                f"data folder {path}: no data in it; expected .jsonl, .json, .csv or .parquet files, or a folder saved "
                "by `datasets`"
            )
    elif file.exists():
        files = [file]
    else:
        files = [each for each in map(Path, glob(path, recursive=True)) if each.is_file()]
        if not files:
            raise UserError(
                f"data file {path}: no such file; expected JSON, CSV or Parquet, a pattern or folder of such files, a "
                "saved `datasets` folder, or a name on the hub"
            )
    return sorted(files)


def _splits(files: Sequence[Path]) -> list[str]:
    """Return the split that each file's name says; `train` for all where none says one."""
    found = [_NAMED_SPLIT.match(file.name) for file in files]
    if not any(found) or len(files) == 1:
        return [ONLY_SPLIT] * len(files)
    return [
        file.name.split(".")[0] if match is None else match["numbered"] or match["word"]
        for file, match in zip(files, found, strict=True)
    ]
