"""What is left out of tables, and what of the training table is held out, by the rows' content alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import ceil
from typing import Any

from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError, at_least_one


@dataclass(frozen=True)
class Preparation:
    """Which rows of the tables are used.

    Attributes:
        held_out_fraction: about this part of the prompts of `train` is held out for validation; 0: none. Which ones
            depends on the prompts alone: all rows of a prompt are on one side, and stay there in whatever order, and
            with whatever further rows, the table is read.
        held_out_salt: another text holds out other prompts.
        deduplicate: whether of equal rows the first alone is used: of the same prompt for policy optimisation, else of
            the same values in every column.
        max_tokens: leave out rows of more tokens: of the prompt for policy optimisation, else with the completion, the
            longer one of two; None: none.
    """

    held_out_fraction: float = 0.0
    held_out_salt: str = ""
    deduplicate: bool = False
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        at_least_one("preparation.", max_tokens=self.max_tokens)
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(
                f"preparation.held_out_fraction: got {self.held_out_fraction}, expected a part of the prompts, "
                "from 0 to below 1"
            )
        if self.held_out_salt and not self.held_out_fraction:
            raise UserError("preparation.held_out_salt without held_out_fraction has no effect; leave it out")

    def is_held_out(self, prompt: Any) -> bool:
        """Return whether a prompt belongs to the held-out part."""
        number = int.from_bytes(digest([self.held_out_salt, prompt])[:8], "big")
        return number < ceil(self.held_out_fraction * 2**64)


def digest(value: Any) -> bytes:
    """Return 32 bytes that tell values apart: SHA-256 of their canonical JSON.

    Text, numbers, lists such as those of messages, and dictionaries whatever the order of their keys. A key without a
    value is as good as none: tables of messages fill up with those.
    """
    canonical = json.dumps(_filled(value), sort_keys=True, separators=(",", ":"), default=repr)
    return sha256(canonical.encode()).digest()


def _filled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _filled(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_filled(item) for item in value]
    return value


def without_repeats(table: Table, key: Callable[[dict[str, Any]], Any]) -> Table:
    """Return the first row of each key."""
    first: dict[bytes, int] = {}
    for place, row in enumerate(table):
        first.setdefault(digest(key(row)), place)
    return table if len(first) == len(table) else table.select(list(first.values()))


def split(table: Table, prompt: Callable[[dict[str, Any]], Any], preparation: Preparation) -> tuple[Table, Table]:
    """Return the rows to train on and those that are held out, in their order.

    Raises:
        UserError: there are none of one kind.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    for place, row in enumerate(table):
        parts[preparation.is_held_out(prompt(row))].append(place)
    if not all(parts):
        raise UserError(
            f"{table.name}: preparation.held_out_fraction: got {preparation.held_out_fraction}, which leaves "
            f"{len(parts[0])} rows to train on and holds out {len(parts[1])}; choose another part, or give a "
            "`validation` table"
        )
    train, held_out = (table.select(part) for part in parts)
    return train, held_out


def shared_prompts(train: Table, held_out: Table, prompt: Callable[[dict[str, Any]], Any]) -> tuple[int, int]:
    """Return how many prompts of a held-out table are in the training table, too, and how many it has."""
    known, asked = ({digest(prompt(row)) for row in table} for table in (train, held_out))
    return len(known & asked), len(asked)


def short_enough(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Return the places of the rows with at most so many tokens."""
    return [row for row, length in enumerate(lengths) if length <= max_tokens]
