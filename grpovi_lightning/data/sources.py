"""What to read: the file, folder or hub name of a table, and which of its rows."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict

from grpovi_lightning.errors import UserError, at_least_one

_SPLIT = re.compile(r"(?P<name>\w[\w.-]*)?(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_ENDINGS = {".jsonl": "JSON", ".json": "JSON", ".csv": "CSV", ".parquet": "Parquet"}
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop` - 1 of a split, in the notation of `datasets`: `[10:20]`, `[:80%]`, `[-100:]`.

    Attributes:
        start: a number, below 0 if counted from the end, or a percentage such as "80%"; None is the beginning.
        stop: likewise; None is the end.
    """

    start: str | None = None
    stop: str | None = None

    def bounds(self, n_rows: int) -> tuple[int, int]:
        """Return first row and the one behind the last, of `n_rows`; they may lie outside. Percentages are rounded.

        >>> RowRange("-30%", None).bounds(10), RowRange("2", "99").bounds(10)
        ((7, 10), (2, 99))
        """

        def row(text: str) -> int:
            number = round(int(text[:-1]) * n_rows / 100) if text.endswith("%") else int(text)
            return number + n_rows if text.startswith("-") else number

        return 0 if self.start is None else row(self.start), n_rows if self.stop is None else row(self.stop)

    @property
    def counts_rows(self) -> bool:
        """Whether the number of rows has to be known."""
        return any("%" in text or "-" in text for text in (self.start, self.stop) if text)

    def __str__(self) -> str:
        return f"[{self.start or ''}:{self.stop or ''}]"


class DataSource(TypedDict, total=False):
    """A table to read. Each of its rows keeps the number that it has in the whole split, whichever rows are taken.

    A dictionary, and no class, so that a parser does not take a path next to it for a file of settings.

    Attributes:
        path: a file (.jsonl, .json, .csv, .parquet; text also .gz and .zst), a pattern such as `shards/*.parquet`, a
            folder of files, a folder saved by `datasets`, or a name on the Hugging Face hub such as `openai/gsm8k`.
        name: configuration of a hub data set, such as `main`.
        split: such as `train`, `train[:80%]`, `test[100:200]`; a file alone is `train`, and `[:80%]` will do there.
            None: the only split.
        revision: branch, tag or commit of a hub data set; None: the newest, or what the cache has.
        rename: columns, old name -> new name; the other settings use the new ones.
        max_rows: take so many rows, from the first on; None: all.
        streaming: read no further than the last row of `max_rows`, for data that does not fit.
        shuffle_seed: take `max_rows` rows at random instead; a larger number takes the same ones and more.
    """

    path: Required[str]
    name: str | None
    split: str | None
    revision: str | None
    rename: dict[str, str] | None
    max_rows: int | None
    streaming: bool
    shuffle_seed: int | None


TableSource = str | DataSource
"""A table to read, which may be given by its path alone."""


class Source:
    """A `DataSource` whose settings were checked; nothing is read yet."""

    def __init__(self, value: TableSource) -> None:
        """Take the settings.

        Raises:
            UserError: they cannot work, whatever there is to read.
        """
        given: DataSource = {"path": value} if isinstance(value, str) else value
        unknown = [setting for setting in given if setting not in DataSource.__annotations__]
        if unknown or not given.get("path"):
            wrong = f"no setting {unknown[0]!r}" if unknown else "no path"
            raise UserError(
                f"data {given}: {wrong}; expected `path` and, where needed, {', '.join(DataSource.__annotations__)}"
            )
        self.path = given["path"]
        self.name, self.revision = given.get("name"), given.get("revision")
        self.rename = given.get("rename") or {}
        self.max_rows, self.shuffle_seed = given.get("max_rows"), given.get("shuffle_seed")
        self.streaming = given.get("streaming", False)
        split = _SPLIT.fullmatch(given.get("split") or "")
        if split is None:
            raise self._refuse(
                f"split: got {given.get('split')!r}, expected a name, with or without a range of rows, such as train, "
                "train[:80%] or test[100:200]"
            )
        self.split: str | None = split["name"]
        """Name of the split; None where none is given."""
        self.row_range = RowRange(split["start"], split["stop"])
        at_least_one(f"data {self.path}: ", max_rows=self.max_rows)
        self._check_streaming()
        self._check_shuffling()

    def _check_streaming(self) -> None:
        if self.streaming and self.max_rows is None:
            raise self._refuse(
                "streaming without max_rows; set max_rows to the number of rows to read, or leave streaming out"
            )
        if self.streaming and self.row_range.counts_rows:
            raise self._refuse(
                f"split: got {self.row_range} with streaming, which does not know how many rows there are; count from "
                "the first row, as in [100:200]"
            )

    def _check_shuffling(self) -> None:
        if self.shuffle_seed is None:
            return
        if self.shuffle_seed < 0:
            raise self._refuse(f"shuffle_seed: got {self.shuffle_seed}, expected at least 0")
        if self.max_rows is None:
            raise self._refuse(
                "shuffle_seed without max_rows has no effect: steps take rows in random order already; set max_rows, "
                "or leave it out"
            )
        if self.streaming:
            raise self._refuse(
                "shuffle_seed with streaming would have to read all rows; leave one of the two out, or choose a range "
                "such as train[100:200]"
            )

    def _refuse(self, problem: str) -> UserError:
        return UserError(f"data {self.path}: {problem}")

    @property
    def is_local(self) -> bool:
        """Whether the path is on this machine, and no name on the hub."""
        path = Path(self.path)
        return (
            path.exists()
            or self.path.startswith((".", "/", "~"))
            or format_of(path) is not None
            or _HUB_NAME.fullmatch(self.path) is None
        )

    def check_local(self) -> None:
        """Raise `UserError` for a setting that has an effect on the hub only."""
        for setting, value in (("name", self.name), ("revision", self.revision)):
            if value is not None:
                raise self._refuse(f"{setting}: got {value!r}, which has an effect on hub names only; leave it out")


def format_of(file: Path) -> str | None:
    """Return "JSON", "CSV" or "Parquet" by a file's name; None for another one.

    >>> [format_of(Path(name)) for name in ("a.b.JSON", "a.csv.gz", "a.parquet.gz", "notes.md")]
    ['JSON', 'CSV', None, None]
    """
    endings = [ending.lower() for ending in file.suffixes[-2:]]
    if endings and endings[-1] in _COMPRESSED:
        inner = _ENDINGS.get(endings[0])
        return None if inner == "Parquet" or len(endings) < 2 else inner
    return _ENDINGS.get(endings[-1]) if endings else None
