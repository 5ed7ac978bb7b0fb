"""Variance increase for a table of rewards, without training: what `grpovi adjust` does.

Axes: N completions, the rows of the table; P groups of the same size G.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from grpovi_lightning.adjustment import increase_variance
from grpovi_lightning.adjustment.diagnostics import CHANGED, weighted_variance
from grpovi_lightning.adjustment.ties import TiesName
from grpovi_lightning.errors import UserError
from grpovi_lightning.reward_tables import (
    ADJUSTED,
    RewardTable,
    checked_ending,
    csv_bytes,
    parquet_bytes,
    read_rewards,
)


@dataclass(frozen=True)
class _Scores:
    """What is adjusted: N group numbers from 0, N rewards and N logs of weights, None for uniform ones."""

    groups: np.ndarray
    rewards: np.ndarray
    log_weights: np.ndarray | None


@dataclass(frozen=True)
class _Solution:
    """N adjusted rewards; for each group whether it changed, and its weighted variance before and after."""

    adjusted: np.ndarray
    changed: np.ndarray
    before: np.ndarray
    after: np.ndarray


def adjust_file(
    file: Path, *, lower: float, upper: float, ties: TiesName = "merge", output: Path | None = None
) -> tuple[bytes, str]:
    """Adjusts the rewards of a CSV or Parquet file; nothing is written.

    Args:
        file: has the columns `group`, `reward` and, where the weights are not uniform, `log_weight`: natural logs,
            unnormalised, -inf for a weight of zero. The rows of a group need not be adjacent.
        lower: lower bound of the range, in units of the reward.
        upper: upper bound.
        ties: "merge" keeps equal rewards equal; "split" is the paper's model, where the earlier row comes first.
        output: where the table is meant to go, .csv or .parquet; None is CSV.

    Returns:
        The content of the output, which is the table with a column `adjusted`, and a summary of a few lines.

    Raises:
        UserError: the bounds, the table or the output are not in order.
    """
    if not (lower < upper and math.isfinite(upper - lower)):
        raise UserError(f"bounds: got --lower {lower} and --upper {upper}, expected finite numbers, lower below upper")
    ending = ".csv" if output is None else checked_ending(output)
    table = read_rewards(file)
    scores = _scores(table, lower, upper)
    solution = _solve(scores, lower, upper, ties)
    columns = table.columns
    if file.suffix.lower() == ".csv" and ending == ".parquet":
        columns = _with_numbers(columns, scores)
    columns = columns.append_column(ADJUSTED, pa.array(solution.adjusted))
    content = csv_bytes(columns) if ending == ".csv" else parquet_bytes(columns)
    return content, _summary(scores, solution, lower, upper)


def _scores(table: RewardTable, lower: float, upper: float) -> _Scores:
    """The columns that are read, each value checked."""
    names = table.columns["group"].to_pylist()
    for row, name in enumerate(names):
        if _missing(name):
            raise table.error(row, f"group: got {_shown(name)}, expected the name of a group")
        if not isinstance(name, Hashable):
            raise table.error(row, f"group: got {_shown(name)}, expected text or a number")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    groups = np.array([numbers[name] for name in names])

    rewards = _numbers(table, "reward")
    _refuse(table, "reward", ~np.isfinite(rewards), "a finite number")
    _refuse(table, "reward", rewards < lower, f"at least {lower}, the lower bound; widen the range with --lower")
    _refuse(table, "reward", rewards > upper, f"at most {upper}, the upper bound; widen the range with --upper")
    if "log_weight" not in table.columns.column_names:
        return _Scores(groups, rewards, None)

    weights = _numbers(table, "log_weight")
    _refuse(table, "log_weight", ~(weights < np.inf), "a number, or -inf for a weight of zero")
    empty = np.bincount(groups, weights=weights > -np.inf) == 0
    if empty.any():
        row = int(empty[groups].argmax())
        raise table.error(
            row, f"log_weight: got -inf for all of group {_shown(names[row])}, expected one weight above zero"
        )
    return _Scores(groups, rewards, weights)


def _numbers(table: RewardTable, name: str) -> np.ndarray:
    """A column as [N] float64, NaN where a value is no number."""
    return np.array([_number(value) for value in table.columns[name].to_pylist()])


def _number(value: Any) -> float:
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _refuse(table: RewardTable, name: str, bad: np.ndarray, expected: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise table.error(row, f"{name}: got {_shown(table.columns[name][row].as_py())}, expected {expected}")


def _missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _shown(value: Any) -> str:
    text = "nothing" if value is None or value == "" else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _solve(scores: _Scores, lower: float, upper: float, ties: TiesName) -> _Solution:
    """Solves all groups of one size at once."""
    sizes = np.bincount(scores.groups)
    order = np.argsort(scores.groups, kind="stable")  # rows, those of a group adjacent and in the file's order
    starts = np.cumsum(sizes) - sizes
    adjusted = np.empty_like(scores.rewards)
    changed, before, after = np.empty(len(sizes), dtype=bool), np.empty(len(sizes)), np.empty(len(sizes))
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        rows = order[starts[same, None] + np.arange(size)]
        r = torch.from_numpy(scores.rewards[rows])
        log_weights = torch.zeros_like(r) if scores.log_weights is None else torch.from_numpy(scores.log_weights[rows])
        z = increase_variance(r, log_weights, lower=lower, upper=upper, ties=ties)
        adjusted[rows] = z.numpy()
        changed[same] = ((z - r).abs() > CHANGED * (upper - lower)).any(dim=1).numpy()
        weights = log_weights.softmax(dim=1)
        before[same], after[same] = weighted_variance(r, weights), weighted_variance(z, weights)
    return _Solution(adjusted, changed, before, after)


def _summary(scores: _Scores, solution: _Solution, lower: float, upper: float) -> str:
    n_groups, n_changed = len(solution.changed), int(solution.changed.sum())
    weights = "uniform" if scores.log_weights is None else "from log_weight"
    lines = [
        f"groups: {n_groups}, changed: {n_changed} ({n_changed / n_groups:.1%}), completions: {len(scores.rewards)}",
        f"range: {lower} to {upper}, weights: {weights}",
        "weighted reward variance, mean over groups: "
        f"{solution.before.mean():.4g} before, {solution.after.mean():.4g} after",
    ]
    if n_changed == 0 and np.isin(scores.rewards, (lower, upper)).all():
        lines.append("no group changed: every reward is at a bound already")
    elif n_changed == 0:
        lines.append(
            "no group changed: in each, the rewards are equal, or as far apart already as mean, order and bounds allow"
        )
    return "\n".join(lines)


def _with_numbers(columns: pa.Table, scores: _Scores) -> pa.Table:
    """The numbers that a CSV file holds as text, as numbers; other columns have no known type and stay text."""
    for name, values in (("reward", scores.rewards), ("log_weight", scores.log_weights)):
        if values is not None:
            columns = columns.set_column(columns.column_names.index(name), name, pa.array(values))
    return columns
