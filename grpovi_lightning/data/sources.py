"""What to read: the file, folder or hub name of a table, and which of its rows."""

import re
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class DataSource:
    """A table to read. Each of its rows keeps the number that it has in the whole split, whichever rows are taken.

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

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    rename: dict[str, str] | None = None
    max_rows: int | None = None
    streaming: bool = False
    shuffle_seed: int | None = None

    def check(self) -> None:
        """Raise `UserError` for settings that cannot work, before anything is read.

        Not when the object is made: a parser that tries several types would hide the message.
        """
        at_least_one(f"data {self.path}: ", max_rows=self.max_rows)
        name, rows = self.split_name, self.row_range  # notation that cannot be read is refused
        if self.streaming and self.max_rows is None:
            raise UserError(
                f"data {self.path}: streaming without max_rows; set max_rows to the number of rows to read, or leave "
                "streaming out"
            )
        if self.streaming and rows.counts_rows:
            raise UserError(
                f"data {self.path}: split: got {name or ''}{rows} with streaming, which does not know how many rows "
                "there are; count from the first row, as in [100:200]"
            )
        if self.shuffle_seed is None:
            return
        if self.shuffle_seed < 0:
            raise UserError(f"data {self.path}: shuffle_seed: got {self.shuffle_seed}, expected at least 0")
        if self.max_rows is None:
            raise UserError(
                f"data {self.path}: shuffle_seed without max_rows has no effect: steps take rows in random order "
                "already; set max_rows, or leave it out"
            )
        if self.streaming:
            raise UserError(
                f"data {self.path}: shuffle_seed with streaming would have to read all rows; leave one of the two out, "
                "or choose a range such as train[100:200]"
            )

    @classmethod
    def of(cls, value: "str | DataSource") -> "DataSource":
        """Return a source that may be given by its path alone."""
        return value if isinstance(value, DataSource) else cls(value)

    @property
    def split_name(self) -> str | None:
        """The name of the split; None where none is given."""
        return self._split()["name"]

    @property
    def row_range(self) -> RowRange:
        """The rows of the split that are meant."""
        found = self._split()
        return RowRange(found["start"], found["stop"])

    def _split(self) -> re.Match[str]:
        found = _SPLIT.fullmatch(self.split or "")
        if found is None:
            raise UserError(
                f"data {self.path}: split: got {self.split!r}, expected a name, with or without a range of rows, such "
                "as train, train[:80%] or test[100:200]"
            )
        return found

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
        for setting in ("name", "revision"):
            if getattr(self, setting) is not None:
                raise UserError(
                    f"data {self.path}: {setting}: got {getattr(self, setting)!r}, which has an effect on hub names "
                    "only; leave it out"
                )


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
