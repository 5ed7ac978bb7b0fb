"""The completions of a run on disk: `<run>/completions/`, written while it trains and read by `analysis`.

    train-000000.parquet       completions of training steps, from step 0 on
    held_out-000000.parquet    those of the held-out set; of sets with names, <set>-000000.parquet each
    _train-000240.arrows       what came after: an Arrow stream, one record batch a step or evaluation

Rows are appended to the stream, so that a process that is killed loses at most the step that it is writing. A stream
that has grown, or whose run ends, becomes a Parquet file. A file a step would say the same in hundreds of files.

Imports pyarrow besides the standard library; no other module here does.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grpovi_lightning.run_record.layout import RecordError, replace_file

TRAIN, HELD_OUT = "train", "held_out"
COLUMNS = {
    "step": pa.int64(),
    "prompt_id": pa.string(),
    "row": pa.int64(),
    "member": pa.int64(),
    "prompt": pa.string(),
    "completion": pa.string(),
    "reward": pa.float64(),
    "adjusted": pa.float64(),
    "advantage": pa.float64(),
    "length": pa.int64(),
    "truncated": pa.bool_(),
    "logprob": pa.float64(),
    "ref_logprob": pa.float64(),
    "kl": pa.float64(),
    "ids": pa.list_(pa.int32()),
}
"""What a row says of a completion; after `reward` stands a column `rewards/<name>` for each component of the reward.

- `step`: policy steps done before it was sampled. `prompt_id`: the same for equal prompts, in every run.
- `row`: the prompt's place in its table. `member`: of its group, 0 to G - 1.
- `prompt`, `completion`: text. Half of a surrogate pair, which UTF-8 has no bytes for, is written as its escape, six
  characters such as `\\ud800`; every other character stays as it is, NUL included.
- `reward`, components: raw, NaN where the completion could not be scored. `adjusted`, `advantage`: of training alone,
  NaN where a selection did not keep the completion. `adjusted` is NaN also where its group was left out.
- `length`: tokens, the end token included. `truncated`: whether there is no end token.
- `logprob`: of the whole completion under the policy that sampled it, at the sampling temperature, nats.
- `ref_logprob`: likewise under the reference policy; null where not known.
- `kl`: to the reference policy, the mean over its tokens of the k3 estimate, nats a token; null where not known.
- `ids`: its tokens.
"""

_STEM = re.compile(r"(.+)-(\d{6,})")
_HALVINGS = b"halvings"
_ID_BITS = 64


@dataclass(frozen=True)
class Part:
    """One file of completions.

    Attributes:
        split: `train` or `held_out`.
        set: name of the held-out set; empty of one without a name, and of training.
        first: the first step in it.
        path: a Parquet file, or a stream.
    """

    split: str
    set: str
    first: int
    path: Path


def parts_of(folder: Path) -> list[Part]:
    """Return the files of completions in a folder, by set and first step; none where there is no folder."""
    found: dict[str, Part] = {}
    for path in (*folder.glob("_*.arrows"), *folder.glob("*.parquet")):  # a stream whose Parquet file is there is done
        stem = path.stem.removeprefix("_") if path.suffix == ".arrows" else path.stem
        if match := _STEM.fullmatch(stem):
            split, name = _set_of(match.group(1))
            found[stem] = Part(split, name, int(match.group(2)), path)
    return sorted(found.values(), key=lambda part: (part.split != TRAIN, part.set, part.first))


def file_prefix(split: str, name: str) -> str:
    """Return how the files of a set begin; names have no dot, so that no two sets share one.

    >>> file_prefix("train", ""), file_prefix("held_out", ""), file_prefix("held_out", "far")
    ('train', 'held_out', 'far')
    >>> file_prefix("held_out", "train")
    'held_out.train'
    """
    if split == TRAIN or not name:
        return split
    return f"{HELD_OUT}.{name}" if name in (TRAIN, HELD_OUT) else name


def _set_of(prefix: str) -> tuple[str, str]:
    if prefix in (TRAIN, HELD_OUT):
        return prefix, ""
    return HELD_OUT, prefix.removeprefix(f"{HELD_OUT}.")


def read_part(path: Path) -> pa.Table:
    """Return the rows of a file; of a stream, those that were written to their end.

    Raises:
        RecordError: it is damaged.
    """
    try:
        # Not `read_table`: in a folder such as `grpo@lr=0.1` that takes `lr` for a column.
        return _whole_batches(path) if path.suffix == ".arrows" else pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise RecordError(f"{path}: cannot be read as completions ({reason}); remove it to go without them") from error


def halvings_of(table: pa.Table) -> int:
    """Return how often the prompts were halved whose completions a file has; see `CompletionSet.halve`."""
    return int((table.schema.metadata or {}).get(_HALVINGS, 0))


def _whole_batches(path: Path) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    with pa.OSFile(str(path)) as file:
        try:
            stream = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:  # killed before anything was in it
            return pa.table({})
        with suppress(pa.ArrowInvalid, OSError):  # of the last one, where the process was killed within it
            batches.extend(stream)
        return pa.Table.from_batches(batches, stream.schema)


class CompletionSet:
    """The files of one set while a run writes them: whole parts, and a stream that grows."""

    def __init__(self, folder: Path, split: str, name: str, part_bytes: int) -> None:
        """Take what is there already.

        Args:
            folder: where the files are.
            split: `train` or `held_out`.
            name: of the held-out set; empty of one without a name, and of training.
            part_bytes: a stream with so many bytes of text and numbers becomes a Parquet file.
        """
        self.folder, self.split, self.name, self.part_bytes = folder, split, name, part_bytes
        self.halvings = 0
        """How often the prompts that are kept were halved; see `halve`."""
        self._first, self._batches, self._weight = 0, list[pa.RecordBatch](), 0
        self._stream: pa.NativeFile | None = None
        self._bytes_of_parts = 0

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return self._bytes_of_parts + (0 if self._stream is None else self._stream.tell())

    def go_on_from(self, step: int) -> None:
        """Drop the rows of this step and later ones, which the run makes again, and go on behind the others.

        The last part goes on growing where it is not full, so that a run which was stopped leaves the files of one that
        was not.
        """
        parts = [part for part in parts_of(self.folder) if (part.split, part.set) == (self.split, self.name)]
        tables = []
        for part in parts:
            table = read_part(part.path) if part.first < step else None
            kept = _at(table, "less", step) if table is not None and len(table) else None
            tables.append(kept if kept is not None and len(kept) else None)
        standing = [place for place, table in enumerate(tables) if table is not None]
        for place, (part, table) in enumerate(zip(parts, tables, strict=True)):
            if table is None:
                part.path.unlink()
                continue
            self.halvings = max(self.halvings, halvings_of(table))
            self._seal(part.first, table)  # also what grows on: a process may be killed while it is copied back
            if place == standing[-1] and _weight(table) < self.part_bytes:
                for batch in _by_step(table):
                    self._write(batch)
                self._path(part.first).unlink()
        self._measure()

    def append(self, rows: pa.RecordBatch) -> None:
        """Add the rows of a step, which are on disk when this returns."""
        if self.halvings:
            rows = rows.filter(_kept(rows["prompt_id"], self.halvings))
        if not len(rows):
            return
        self._write(rows.replace_schema_metadata({_HALVINGS: str(self.halvings)}))
        if self._weight >= self.part_bytes:
            self.close()

    def _write(self, rows: pa.RecordBatch) -> None:
        if self._batches and self._batches[0].schema != rows.schema:  # a run that goes on with other rewards
            self.close()
        if self._stream is None:
            self._first, self._weight = rows["step"][0].as_py(), 0
            self._stream = pa.OSFile(str(self._path(self._first, stream=True)), "wb")
            self._writer = pa.ipc.new_stream(self._stream, rows.schema)
        self._writer.write_batch(rows)
        self._batches.append(rows)
        self._weight += _weight(rows)

    def close(self) -> None:
        """Make a Parquet file of the stream, if there is one."""
        if self._stream is not None:
            self._writer.close()
            self._stream.close()
            self._stream, batches, self._batches = None, self._batches, []
            self._seal(self._first, pa.Table.from_batches(batches))
            self._measure()

    def halve(self) -> None:
        """Keep the completions of half of the prompts alone, here and in all that is appended later.

        The number of a prompt's id decides, so that the same prompts are kept in every run.
        """
        self.close()
        self.halvings += 1
        for part in parts_of(self.folder):
            if (part.split, part.set) == (self.split, self.name):
                table = read_part(part.path)
                kept = table.filter(_kept(table["prompt_id"], self.halvings))
                if len(kept):
                    self._seal(part.first, kept.replace_schema_metadata({_HALVINGS: str(self.halvings)}))
                else:
                    part.path.unlink()
        self._measure()

    def _seal(self, first: int, table: pa.Table) -> None:
        content = pa.BufferOutputStream()
        pq.write_table(table.combine_chunks(), content, compression="zstd")
        replace_file(self._path(first), content.getvalue().to_pybytes())
        self._path(first, stream=True).unlink(missing_ok=True)

    def _measure(self) -> None:
        self._bytes_of_parts = sum(
            part.path.stat().st_size
            for part in parts_of(self.folder)
            if (part.split, part.set) == (self.split, self.name) and part.path.suffix == ".parquet"
        )

    def _path(self, first: int, stream: bool = False) -> Path:
        stem = f"{file_prefix(self.split, self.name)}-{first:06d}"
        return self.folder / (f"_{stem}.arrows" if stream else f"{stem}.parquet")


def _by_step(table: pa.Table) -> Iterator[pa.RecordBatch]:
    for step in table["step"].unique().to_pylist():
        yield from _at(table, "equal", step).combine_chunks().to_batches()


def _at(table: pa.Table, relation: str, step: int) -> pa.Table:
    """Return the rows whose step is `less` than this one, or `equal` to it."""
    return table.filter(pc.call_function(relation, [table["step"], pa.scalar(step)]))


def _weight(rows: pa.Table | pa.RecordBatch) -> int:
    """Return bytes of text and numbers, whatever pieces the rows are in."""
    texts = [field.name for field in rows.schema if field.type == pa.string()]
    lists = [field.name for field in rows.schema if pa.types.is_list(field.type)]
    of_texts = _total("binary_length", rows, texts)
    return (
        of_texts
        + 4 * _total("list_value_length", rows, lists)
        + 8 * len(rows) * (rows.num_columns - len(texts) - len(lists))
    )


def _total(length: str, rows: pa.Table | pa.RecordBatch, names: list[str]) -> int:
    """Return the sum over some columns of what a function of Arrow says of each value."""
    lengths = [pc.call_function(length, [rows[name]]) for name in names]
    return sum(pc.call_function("sum", [each]).as_py() or 0 for each in lengths)


def _kept(ids: pa.Array | pa.ChunkedArray, halvings: int) -> pa.Array:
    below = 1 << (_ID_BITS - halvings)
    return pa.array([int(each, 16) < below for each in ids.to_pylist()], pa.bool_())
