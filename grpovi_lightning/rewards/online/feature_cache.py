"""Features on disk, so that a table's pass through the feature model is paid for once."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grpovi_lightning.errors import UserError

_QUERY_SIZE = 500
"""Keys looked up in one query; SQLite takes a limited number of arguments."""
_WAIT_SECONDS = 60.0


class FeatureCache:
    """An SQLite file: (feature model, tokens) -> float32 features.

    Several processes may use one file, but not on a network file system. The last bits of features depend on the batch
    in which they were computed, so those in a file depend on the run that computed them first. A run that must repeat
    to the bit keeps its file, or uses none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def fetch(
        self, fingerprint: str, rows: list[list[int]], dim: int, compute: Callable[[list[list[int]]], Tensor]
    ) -> Tensor:
        """Return features [B, D] float32 of B token lists; compute and keep those that are not in the file yet.

        Each feature model has features of its own, under its fingerprint of 64 hexadecimal digits. `compute` returns
        those of b token lists, [b, D].

        Raises:
            UserError: the file cannot be read or written, or its features have another width.
        """
        names = [_key(fingerprint, row) for row in rows]
        with self._open() as database:
            kept = dict(self._read(database, names, dim))
        missing = {name: row for name, row in zip(names, rows, strict=True) if name not in kept}
        if missing:
            fresh = compute(list(missing.values())).cpu().float().numpy()
            found = [(name, values.astype("<f4").tobytes()) for name, values in zip(missing, fresh, strict=True)]
            with self._open() as database, database:
                database.executemany("INSERT OR IGNORE INTO features VALUES (?, ?)", found)
            kept |= {name: np.frombuffer(values, "<f4") for name, values in found}
        return torch.from_numpy(np.stack([kept[name] for name in names])).float()

    def _read(self, database: sqlite3.Connection, names: list[bytes], dim: int) -> Iterator[tuple[bytes, np.ndarray]]:
        for start in range(0, len(names), _QUERY_SIZE):
            some = names[start : start + _QUERY_SIZE]
            marks = ",".join("?" * len(some))
            for name, values in database.execute(f"SELECT name, value FROM features WHERE name IN ({marks})", some):
                if len(values) != 4 * dim:
                    raise UserError(
                        f"feature cache {self.path}: got {len(values)} bytes for a sequence, expected {4 * dim}; the "
                        "file is damaged: delete it"
                    )
                yield name, np.frombuffer(values, "<f4")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as database:
                database.execute("CREATE TABLE IF NOT EXISTS features (name BLOB PRIMARY KEY, value BLOB NOT NULL)")
                yield database
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"feature cache {self.path}: {error}; delete the file or name another") from error


def _key(fingerprint: str, row: list[int]) -> bytes:
    return hashlib.sha256(bytes.fromhex(fingerprint) + np.array(row, dtype="<i8").tobytes()).digest()
