"""One logged scalar over the steps of a run, and what is read off it."""

from dataclasses import dataclass

import numpy as np

WINDOW = 10
"""Measurements whose mean is judged: single steps are noisy, and a fault that passes by itself is none."""
FEWEST = 3
"""Measurements without which nothing is judged."""


@dataclass(frozen=True)
class Stretch:
    """A run of measurements: first and last step, and the mean value."""

    first: int
    last: int
    mean: float

    def __str__(self) -> str:
        return f"over step {self.first} to {self.last}"


@dataclass(frozen=True)
class Series:
    """Finite values over rising steps.

    Attributes:
        steps: [N] int.
        values: [N] float64.
    """

    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, steps: object, values: object) -> "Series":
        """Make a series of what was logged in order of its steps; values that are not finite are left out.

        >>> Series.of([0, 1, 2], [1.0, float("nan"), 3.0]).values.tolist()
        [1.0, 3.0]
        """
        all_steps, all_values = np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
        finite = np.isfinite(all_values)
        return cls(all_steps[finite], all_values[finite])

    def __len__(self) -> int:
        return len(self.values)

    def stretch(self, start: int, size: int) -> Stretch:
        """Return the `size` measurements from index `start` on."""
        end = start + size
        return Stretch(int(self.steps[start]), int(self.steps[end - 1]), float(self.values[start:end].mean()))

    def means(self, size: int) -> np.ndarray:
        """Return the mean of each `size` measurements in a row, [N - size + 1]."""
        sums = np.concatenate([[0.0], np.cumsum(self.values)])
        return (sums[size:] - sums[:-size]) / size

    def highest(self, above: float) -> Stretch | None:
        """Return the stretch of `WINDOW` measurements, or of fewer if there are no more, with the largest mean.

        None where that is not above `above`, or where there are fewer than `FEWEST` measurements.

        >>> Series.of(range(5), [0, 0, 1, 1, 1]).highest(0.5)
        Stretch(first=0, last=4, mean=0.6)
        """
        if len(self) < FEWEST:
            return None
        size = min(WINDOW, len(self))
        found = self.stretch(int(self.means(size).argmax()), size)
        return found if found.mean > above else None

    def lowest(self, below: float) -> Stretch | None:
        """Return the stretch with the smallest mean, likewise; None where that is not below `below`."""
        found = Series(self.steps, -self.values).highest(-below)
        return None if found is None else Stretch(found.first, found.last, -found.mean)

    def between(self, stretch: Stretch) -> float:
        """Return the mean of the values from a stretch's first step to its last; NaN where there are none."""
        inside = self.values[(self.steps >= stretch.first) & (self.steps <= stretch.last)]
        return float(inside.mean()) if inside.size else float("nan")

    @property
    def first(self) -> float:
        """Mean of the first `FEWEST` values: where the run began."""
        return float(self.values[:FEWEST].mean())

    @property
    def noise(self) -> float:
        """Standard deviation of one measurement, as far as it does not lie on a line with its neighbours.

        A value minus the mean of its neighbours has 1.5 times the variance of one value, if values scatter alone.
        What is curved counts as noise, so this is rather too large.
        """
        inner = self.values[1:-1] - (self.values[:-2] + self.values[2:]) / 2
        return float(np.sqrt(np.square(inner).mean() / 1.5)) if inner.size else 0.0

    @property
    def span(self) -> float:
        """Largest value minus the smallest."""
        return float(np.ptp(self.values))


def at_common_steps(first: Series, second: Series) -> tuple[Series, Series]:
    """Return two series where both were measured."""
    common, ours, theirs = np.intersect1d(first.steps, second.steps, return_indices=True)
    return Series(common, first.values[ours]), Series(common, second.values[theirs])
