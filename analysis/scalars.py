"""What the log files of one run hold, and what counts of it where several attempts logged the same steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from grpovi_lightning.metric_keys import EVAL_PREFIX

SCALAR_COLUMNS = {"metric": "category", "step": "int64", "value": "float64", "wall_time": "float64"}


class DamagedLogError(ValueError):
    """A log file that is not as its logger writes it; the message is one line."""


class Scalar(NamedTuple):
    """One logged value: `step` counts policy updates, `wall_time` is in seconds since the epoch."""

    metric: str
    step: int
    value: float
    wall_time: float


class Restart(NamedTuple):
    """Where a resumed run went on: it supersedes what was logged before `time`, evaluations from `step` on.

    The last training step before the checkpoint is logged at `step - 2`, so that training is superseded from
    `step - 1` on.
    """

    step: int
    time: float


@dataclass
class ScalarLog:
    """One log file, values in the order in which they were written.

    Attributes:
        metrics, steps, values, times: One entry a value. `times` orders the attempts of a run: seconds since the
            epoch, or the number of the attempt.
        restarts: The marks of resumed runs in this file.
        is_torn: Whether the file ends inside a record, as a process that was killed leaves it.
    """

    metrics: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    restarts: list[Restart] = field(default_factory=list)
    is_torn: bool = False


@dataclass(frozen=True)
class RunScalars:
    """What the log files of one run hold.

    Attributes:
        table: One row a (metric, step), sorted by metric and step, with the columns of `Scalar`. Empty where a file is
            damaged. `wall_time` is NaN where the logger notes none.
        damage: What is wrong with a file, or None.
        torn_tail: Name of the newest file when it ends inside a record. A process that was killed leaves that
            behind; in a run that says it finished it means that values are missing.
    """

    table: pd.DataFrame
    damage: str | None = None
    torn_tail: str | None = None

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """The rows of the table."""
        return tuple(Scalar(*row) for row in self.table.itertuples(index=False, name=None))


def scalar_table(metrics: pd.Categorical, steps: np.ndarray, values: np.ndarray, times: np.ndarray) -> pd.DataFrame:
    """Make the table of `RunScalars` from its columns."""
    columns = dict(zip(SCALAR_COLUMNS, (metrics, steps, values, times), strict=True))
    return pd.DataFrame(columns, copy=False).astype(SCALAR_COLUMNS)


def no_scalars() -> pd.DataFrame:
    """Make the table of a run that logged nothing."""
    return scalar_table(pd.Categorical([], categories=pd.Index([], dtype="str")), *(np.empty(0) for _ in range(3)))


def settled(logs: Sequence[ScalarLog]) -> pd.DataFrame:
    """Return the values that count, of the files of one run in the order in which they were begun.

    For one (metric, step) the value with the latest time counts, and for equal times the one written last. What a
    restart supersedes does not count, also where the new attempt did not come as far.
    """
    codes, names = pd.factorize(np.array([name for log in logs for name in log.metrics], dtype=object), sort=True)
    steps = np.array([step for log in logs for step in log.steps], dtype=np.int64)
    values = np.array([value for log in logs for value in log.values], dtype=np.float64)
    times = np.array([time for log in logs for time in log.times], dtype=np.float64)
    order = np.lexsort((times, steps, codes))  # stable: equal times stay in the order of writing
    codes, steps, values, times = codes[order], steps[order], values[order], times[order]
    is_last = np.ones(len(order), dtype=bool)
    is_last[:-1] = (codes[1:] != codes[:-1]) | (steps[1:] != steps[:-1])
    of_training = np.array([not str(name).startswith(EVAL_PREFIX) for name in names], dtype=np.int64)
    for restart in (restart for log in logs for restart in log.restarts):
        first = restart.step - of_training[codes]
        is_last &= ~((steps >= first) & (times < restart.time))
    metrics = pd.Categorical.from_codes(codes[is_last], categories=pd.Index(names, dtype="str"))
    return scalar_table(metrics.remove_unused_categories(), steps[is_last], values[is_last], times[is_last])
