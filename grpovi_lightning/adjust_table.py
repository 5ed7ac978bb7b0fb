"""Variance increase for a table of rewards, without training: what `grpovi adjust` does.

Axes: N completions, the rows of the table; P groups, of which those of one size G are solved together.
"""

import csv
import io
import math
import os
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from grpovi_lightning.adjustment import increase_variance
from grpovi_lightning.adjustment.diagnostics import CHANGED, weighted_variance
from grpovi_lightning.adjustment.ties import TiesName
from grpovi_lightning.csv_rows import check_unique, read_csv
from grpovi_lightning.errors import UserError

READER_GONE = 141
"""Exit status when the reader of standard output closed it: 128 + SIGPIPE, as shells count."""


@dataclass(frozen=True)
class _Table:
    """N rows as they were read, all values text if from CSV, and the place of each in the file, such as "line 3"."""

    file: Path
    columns: pa.Table
    places: Sequence[str]

    def refuse(self, name: str, bad: np.ndarray, expected: str, got: str = "") -> None:
        """Raise an error about the first row for which `bad` [N] is true, if there is one."""
        if bad.any():
            row = int(bad.argmax())
            value = self.columns[name][row].as_py()
            got = got or ("nothing" if value is None or value == "" else repr(value))
            got = got if len(got) <= 60 else got[:57] + "..."
            raise UserError(f"{self.file}, {self.places[row]}: {name}: got {got}, expected {expected}")


def adjust_file(
    file: Path, *, lower: float, upper: float, ties: TiesName = "merge", output: Path | None = None
) -> tuple[bytes, str]:
    """Adjust the rewards of a CSV or Parquet file, without writing anything.

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
    ending = ".csv" if output is None else _checked_ending(output, "output ")
    table = _read(file)
    groups, scores = _checked_scores(table, lower, upper)
    adjusted, summary = _solve(groups, scores, lower, upper, ties)
    columns = table.columns
    if file.suffix.lower() == ".csv" and ending == ".parquet":  # other columns have no known type and stay text
        for name, values in scores.items():
            columns = columns.set_column(columns.column_names.index(name), name, pa.array(values))
    return _content(columns.append_column("adjusted", pa.array(adjusted)), ending), summary


def _checked_ending(file: Path, kind: str = "") -> str:
    if (ending := file.suffix.lower()) not in (".csv", ".parquet"):
        raise UserError(f"{kind}{file}: got ending {file.suffix!r}, expected .csv or .parquet")
    return ending


def _read(file: Path) -> _Table:
    ending = _checked_ending(file)
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected CSV or Parquet with the columns group and reward")
    try:
        if ending == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as text:
                names, rows, lines = read_csv(text, str(file))
            _check_columns(file, names, len(rows))
            columns = pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=names)
            return _Table(file, columns, [f"line {line}" for line in lines])
        with pq.ParquetFile(file) as parquet:  # not pandas, whose types are fewer than those of Parquet
            columns = parquet.read()
    except UserError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:  # what the readers raise for bad content
        raise UserError(f"{file}: cannot be read: {error}") from error
    _check_columns(file, columns.column_names, columns.num_rows)
    return _Table(file, columns, [f"row {i + 1}" for i in range(columns.num_rows)])


def _check_columns(file: Path, names: list[str], n_rows: int) -> None:
    if n_rows == 0:
        raise UserError(f"{file}: no rows; expected at least one, below the names of the columns")
    for name in ("group", "reward"):
        if name not in names:
            raise UserError(f"{file}: no column {name!r}, it has {', '.join(names)}; rename the column that is meant")
    if "adjusted" in names:
        raise UserError(f"{file}: has a column 'adjusted' already, which would be written; rename or remove it")
    check_unique(names, str(file))


def _checked_scores(table: _Table, lower: float, upper: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the [N] numbers of the groups, from 0, and of each column of numbers its [N] float64, all checked."""
    names = table.columns["group"].to_pylist()
    table.refuse("group", np.array([v is None or v != v or not str(v).strip() for v in names]), "the name of a group")
    table.refuse("group", np.array([not isinstance(v, Hashable) for v in names]), "text or a number")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    groups = np.array([number[name] for name in names])

    used = [name for name in ("reward", "log_weight") if name in table.columns.column_names]
    scores = {name: np.array([_number(value) for value in table.columns[name].to_pylist()]) for name in used}
    rewards, logs = scores["reward"], scores.get("log_weight", np.zeros(len(groups)))
    table.refuse("reward", ~np.isfinite(rewards), "a finite number")
    table.refuse("reward", rewards < lower, f"at least {lower}, the lower bound; widen the range with --lower")
    table.refuse("reward", rewards > upper, f"at most {upper}, the upper bound; widen the range with --upper")
    table.refuse("log_weight", ~(logs < np.inf), "a number, or -inf for a weight of zero")
    empty = np.bincount(groups, weights=logs > -np.inf)[groups] == 0
    group = names[int(empty.argmax())]
    table.refuse("log_weight", empty, "one weight above zero", got=f"-inf for all of group {group!r}")
    return groups, scores


def _number(value: Any) -> float:
    """Return the value as a float, NaN if it is no number."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _solve(
    groups: np.ndarray, scores: dict[str, np.ndarray], lower: float, upper: float, ties: TiesName
) -> tuple[np.ndarray, str]:
    """Return the adjusted rewards [N], all groups of one size solved at once, and the summary."""
    reward = scores["reward"]
    logs = scores.get("log_weight", np.zeros_like(reward))
    sizes = np.bincount(groups)
    order = np.argsort(groups, kind="stable")  # rows, those of a group adjacent and in the file's order
    starts = np.cumsum(sizes) - sizes
    adjusted = np.empty_like(reward)
    changed, before, after = np.empty(len(sizes), dtype=bool), np.empty(len(sizes)), np.empty(len(sizes))
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        rows = order[starts[same, None] + np.arange(size)]
        r, log_weights = torch.from_numpy(reward[rows]), torch.from_numpy(logs[rows])
        z = increase_variance(r, log_weights, lower=lower, upper=upper, ties=ties)
        adjusted[rows] = z.numpy()
        changed[same] = ((z - r).abs() > CHANGED * (upper - lower)).any(dim=1).numpy()
        weights = log_weights.softmax(dim=1)
        before[same], after[same] = weighted_variance(r, weights), weighted_variance(z, weights)
    lines = [
        f"groups: {len(sizes)}, changed: {changed.sum()} ({changed.mean():.1%}), completions: {len(reward)}",
        f"range: {lower} to {upper}, weights: {'from log_weight' if 'log_weight' in scores else 'uniform'}",
        f"weighted reward variance, mean over groups: {before.mean():.4g} before, {after.mean():.4g} after",
    ]
    if not changed.any() and np.isin(reward, (lower, upper)).all():
        lines.append("no group changed: every reward is at a bound already")
    elif not changed.any():
        why = "in each, the rewards are equal, or as far apart already as mean, order and bounds allow"
        lines.append(f"no group changed: {why}")
    return adjusted, "\n".join(lines)


def _content(columns: pa.Table, ending: str) -> bytes:
    """Return the file: Parquet, or CSV whose floats have as many digits as it takes to read the same float64 back."""
    if ending == ".parquet":
        buffer = pa.BufferOutputStream()
        pq.write_table(columns, buffer)
        return buffer.getvalue().to_pybytes()
    rows = [columns.column_names, *zip(*(column.to_pylist() for column in columns.columns), strict=True)]
    # Inside a value, minimal quoting leaves a carriage return bare, which reads as a line end.
    bare = any("\r" in value for row in rows for value in row if isinstance(value, str))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL).writerows(rows)
    return text.getvalue().encode()


def deliver(content: bytes, output: Path | None) -> int:
    """Write the content to a new file, or to standard output, and return the exit status.

    Raises:
        UserError: it cannot be written, or the file exists. No part of a file is left behind.
    """
    try:
        if output is None:
            sys.stdout.buffer.write(content)  # bytes: UTF-8 and line ends as they are, whatever the terminal's
            sys.stdout.buffer.flush()
            return 0
        with output.open("xb") as stream:
            try:
                stream.write(content)
                stream.flush()
            except BaseException:
                output.unlink()
                raise
            return 0
    except FileExistsError as error:
        message = f"output {output}: exists already and is not overwritten; choose another name or remove it"
        raise UserError(message) from error
    except OSError as error:
        if output is None:
            # What is left in the buffer goes nowhere, or Python would fail on it once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                return READER_GONE
        elif not output.parent.is_dir():
            raise UserError(f"output {output}: no such folder {output.parent}; make it first") from error
        where = "standard output" if output is None else f"output {output}"
        raise UserError(f"{where}: cannot be written: {error.strerror or error}") from error
