"""Two pandas idioms with the types that pandas itself cannot promise."""

from collections.abc import Iterator
from typing import Any, cast

import pandas as pd


def rows_where(table: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """Return the rows of `table` where the boolean series `mask` is true."""
    return cast(pd.DataFrame, table.loc[mask])


def groups(table: pd.DataFrame, *columns: str) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Yield the groups of equal values in `columns`, in sorted order: (the values, the rows)."""
    for key, group in table.groupby(list(columns), observed=True):
        yield cast(tuple[Any, ...], key), group
