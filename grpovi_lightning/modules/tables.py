"""Rows that a model cannot read, or is not meant to, found before the first step."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from grpovi_lightning.data.base import TextDataModule
from grpovi_lightning.data.tables import Table
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.rewards import Reward
from grpovi_lightning.trainer_state import data_of

_ROWS_AT_ONCE = 1000
_FRAME = 16
"""More tokens than a tokenizer adds to a text by itself."""


def check_tables(
    module: L.LightningModule,
    limits: InputLimits,
    encode: Callable[[Any], Sequence[Sequence[int]]],
    completion: int = 0,
) -> None:
    """Leave rows out of all tables of the run's data that are too long for it; refuse those too long for the model.

    Rows are left out where the data says `max_tokens`. For the model, only rows that can be too long are tokenised:
    ASCII makes at most a token of each character. Data of another kind than a `TextDataModule` is not looked at.

    Args:
        module: attached to a trainer, or not; then there is nothing to check.
        limits: those of the model.
        encode: a batch of n rows -> n token lists, or several times n one behind the other.
        completion: tokens that are going to follow each list.

    Raises:
        UserError: names table and row.
    """
    data = data_of(module)
    if isinstance(data, TextDataModule) and data.preparation.max_tokens is not None:
        for name, table in list(data.tables.items()):
            data.keep_short(name, _lengths(table, lambda rows: encode(data.collate(rows))))
    _refuse_too_long(module, limits, encode, completion)


def _lengths(table: Table, encode: Callable[[list[dict[str, Any]]], Sequence[Sequence[int]]]) -> list[int]:
    """Return the tokens of each row, of the longest of its token lists."""
    found: list[int] = []
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = [table[i] for i in range(start, min(start + _ROWS_AT_ONCE, len(table)))]
        lists = encode(rows)
        found += [max(map(len, lists[i :: len(rows)])) for i in range(len(rows))]
    return found


def _refuse_too_long(
    module: L.LightningModule,
    limits: InputLimits,
    encode: Callable[[Any], Sequence[Sequence[int]]],
    completion: int,
) -> None:
    if limits.positions is None:
        return
    data = data_of(module)
    room = limits.positions - completion - _FRAME
    for name, table in getattr(data, "tables", {}).items():
        for start in range(0, len(table), _ROWS_AT_ONCE):
            some = (table[i] for i in range(start, min(start + _ROWS_AT_ONCE, len(table))))
            rows = [row for row in some if _can_exceed(row, room)]
            if rows:
                where = [f"{name} table, row {row['_row']}" for row in rows]
                limits.check(encode(data.collate(rows)), lambda i: where[i % len(where)], completion)  # noqa: B023


def check_prompts(module: L.LightningModule, policy: LanguageModel, reward: Reward, longest: int) -> None:
    """Leave out prompts that the data calls too long, by the policy's tokens, and refuse others that do not fit.

    They are too long for a policy that writes `longest` tokens, or for a model of its reward.
    """
    check_tables(module, policy.limits, lambda batch: policy.prompt_tokens(batch.texts), longest)
    for reader in reward.readers():
        completion = longest if reader.shares_tokens else 0  # how many tokens of its own it will be is not known
        _refuse_too_long(module, reader.limits, lambda batch, reader=reader: reader.prompts(batch.texts), completion)


def _can_exceed(row: dict[str, Any], room: int) -> bool:
    texts = [value for value in row.values() if isinstance(value, str)]
    return sum(map(len, texts)) > room or not all(map(str.isascii, texts))
