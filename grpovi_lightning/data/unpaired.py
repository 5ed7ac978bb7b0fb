"""Rows of one completion with a label each, true where it is good: what TRL calls unpaired preferences."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpovi_lightning.data.preparation import digest
from grpovi_lightning.data.tables import Table
from grpovi_lightning.errors import UserError

_SAME_TURN = ("tools", "chat_template_kwargs")
"""Columns in which rows differ that do not ask the same, although their prompts are equal."""

_log = logging.getLogger(__name__)


def truth(value: Any) -> bool | None:
    """Return the truth value that a cell is or says; None where it is none.

    >>> [truth(value) for value in (False, "True", 1, None)]
    [False, True, None, None]
    """
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def labelled_true(table: Table, label: str) -> Table:
    """Return the rows whose label is true, and say in the log how many are left out.

    Raises:
        UserError: a label is no truth value, or none is true.
    """
    places = [place for place, good in enumerate(_labels(table, label)) if good]
    if not places:
        raise UserError(f"{table.name}: none of its {len(table)} rows has a true {label}, expected some to imitate")
    _log.info(f"{table.name}: {len(table) - len(places)} of {len(table)} rows left out, whose {label} is false")
    return table.select(places)


@dataclass(frozen=True)
class Unpaired:
    """The columns of unpaired preferences.

    Attributes:
        prompt: column of the prompt.
        completion: column of the completion.
        label: column of the truth value.
    """

    prompt: str
    completion: str
    label: str

    def are_in(self, columns: Sequence[str]) -> bool:
        """Return whether a table has all of them."""
        return {self.prompt, self.completion, self.label} <= set(columns)

    def paired(self, table: Table, chosen: str, rejected: str) -> Table:
        """Return the pairs of a prompt's k-th good completion with its k-th other one, and log how many rows have none.

        A pair has the number of its good row. Of the other columns it has those in which both rows agree.

        Args:
            table: with all of the columns.
            chosen: column of the good completion.
            rejected: column of the other one.

        Raises:
            UserError: a label is no truth value, or no prompt has completions of both.
        """
        places = self._places(table)
        if not places:
            raise UserError(
                f"{table.name}: none of its prompts has both a true and a false {self.label}, expected some that have, "
                "whose completions make pairs; SFT reads rows without pairs"
            )
        _log.info(
            f"{table.name}: {len(places)} pairs of completions to the same prompt; "
            f"{len(table) - 2 * len(places)} of {len(table)} rows left out, to which none of the other {self.label} "
            "is left"
        )
        rows = [self._pair(table[good], table[other], chosen, rejected) for good, other in places]
        first = [good for good, _ in places]
        return replace(
            table,
            columns=list(rows[0]),
            rows=rows,
            ids=[table.ids[place] for place in first],
            lines=None if table.lines is None else [table.lines[place] for place in first],
        )

    def _places(self, table: Table) -> list[tuple[int, int]]:
        """Return the places of the rows of each pair, the good one first, in the order of the good ones."""
        found: dict[bytes, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for place, (row, good) in enumerate(zip(table, _labels(table, self.label), strict=True)):
            asked = [row[self.prompt], *(row.get(name) for name in _SAME_TURN)]
            found[digest(asked)][not good].append(place)
        return sorted(pair for good, other in found.values() for pair in zip(good, other, strict=False))

    def _pair(self, good: dict[str, Any], other: dict[str, Any], chosen: str, rejected: str) -> dict[str, Any]:
        own, asked = (self.completion, self.label, "_row"), (self.prompt, *_SAME_TURN)
        shared = {
            name: value if name in asked or other[name] == value else None
            for name, value in good.items()
            if name not in own
        }
        return shared | {chosen: good[self.completion], rejected: other[self.completion]}


def _labels(table: Table, label: str) -> list[bool]:
    found = []
    for place, value in enumerate(table.column(label)):
        good = truth(value)
        if good is None:
            raise table.refuse(place, label, "true or false")
        found.append(good)
    return found
