"""Rows that a model cannot read, or is not meant to, found before the first step."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from grpovi_lightning.conversations import is_messages
from grpovi_lightning.data.base import TextDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.rewards import Reward

_ROWS_AT_ONCE = 1000
_FRAME = 16
"""More tokens than a tokenizer adds to a text by itself."""


def check_tables(
    data: Any,
    limits: InputLimits,
    encode: Callable[[Any], Sequence[Sequence[int]]],
    completion: int = 0,
) -> None:
    """Leave rows out of all tables of the run's data that are too long for it; refuse those too long for the model.

    Rows are left out where the data says `max_tokens`. For the model, only rows that can be too long are tokenised:
    ASCII makes at most a token of each character. So are all messages, whose chat template can fail. Data of another
    kind than a `TextDataModule` is not looked at.

    Args:
        data: of the run, or None; then there is nothing to check.
        limits: those of the model.
        encode: a batch of n rows -> n token lists, or several times n one behind the other.
        completion: tokens that are going to follow each list.

    Raises:
        UserError: names table and row.
    """
    if isinstance(data, TextDataModule) and data.preparation.max_tokens is not None:
        for name in list(data.tables):
            data.keep_short(name, _lengths(data, name, encode))
    _refuse_too_long(data, limits, encode, completion)


def _lengths(data: TextDataModule, name: str, encode: Callable[[Any], Sequence[Sequence[int]]]) -> list[int]:
    """Return the tokens of each row of a table, of the longest of its token lists."""
    table, found = data.tables[name], []
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = [table[i] for i in range(start, min(start + _ROWS_AT_ONCE, len(table)))]
        lists = _encoded(encode, data.collate, rows, [f"{name} table, row {row['_row']}" for row in rows])
        found += [max(map(len, lists[i :: len(rows)])) for i in range(len(rows))]
    return found


def _refuse_too_long(
    data: Any,
    limits: InputLimits,
    encode: Callable[[Any], Sequence[Sequence[int]]],
    completion: int,
) -> None:
    room = inf if limits.positions is None else limits.positions - completion - _FRAME
    for name, table in getattr(data, "tables", {}).items():
        for start in range(0, len(table), _ROWS_AT_ONCE):
            some = (table[i] for i in range(start, min(start + _ROWS_AT_ONCE, len(table))))
            rows = [row for row in some if _can_exceed(row, room)]
            if rows:
                where = [f"{name} table, row {row['_row']}" for row in rows]
                found = _encoded(encode, data.collate, rows, where)
                limits.check(found, lambda i: where[i % len(where)], completion)  # noqa: B023


def _encoded(
    encode: Callable[[Any], Sequence[Sequence[int]]],
    collate: Callable[[list[dict[str, Any]]], Any],
    rows: list[dict[str, Any]],
    where: list[str],
) -> Sequence[Sequence[int]]:
    """Encode rows; an error, such as that of a chat template, names the first row that has it."""
    try:
        return encode(collate(rows))
    except UserError:
        for row, place in zip(rows, where, strict=True):
            try:
                encode(collate([row]))
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
        raise


def check_prompts(data: Any, policy: LanguageModel, reward: Reward, longest: int) -> None:
    """Leave out prompts that the data calls too long, by the policy's tokens, and refuse others that do not fit.

    They are too long for a policy that writes `longest` tokens, or for a model of its reward.
    """
    check_tables(data, policy.limits, lambda batch: policy.prompt_tokens(batch.contents), longest)
    for reader in reward.readers():
        completion = longest if reader.shares_tokens else 0  # how many tokens of its own it will be is not known
        _refuse_too_long(data, reader.limits, lambda batch, reader=reader: reader.prompts(batch.contents), completion)


def _can_exceed(row: dict[str, Any], room: float) -> bool:
    if any(map(is_messages, row.values())):  # how much their template writes is not known
        return True
    texts = [value for value in row.values() if isinstance(value, str)]
    return room < inf and (sum(map(len, texts)) > room or not all(map(str.isascii, texts)))
