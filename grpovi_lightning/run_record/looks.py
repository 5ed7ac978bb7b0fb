"""looks.json of a study: after how many seeds `grpovi compare --until-decided` looks at its results, and how strictly.

Each planned look tests at a level of its own, and the levels add up to that of one test. So the chance of a wrong claim
at any of the looks is at most that level, however the looks depend on each other (Bonferroni's inequality): with
Student's t that holds for few seeds too, while the usual bounds of group-sequential designs are for large samples.
What a look may spend follows a spending function, (seeds at the look / most seeds) ** `SPENDING` (Kim & DeMets 1987):
little at first, so that the last look is nearly as strict as a single test.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from grpovi_lightning.run_record.layout import LOOKS_FILE, SCHEMA, RecordError, check_schema, replace_file

MOST_LOOKS = 4
LEAST_GROWTH = 1.4
"""Looks lie at least about this factor apart: those of nearly the same seeds would spend twice to see the same."""
SPENDING = 3


@dataclass(frozen=True)
class Looks:
    """The looks that are planned, and those that were made.

    Attributes:
        seeds: All seeds up to the last look, in the order in which they are added.
        counts: Number of seeds at each look, rising; the last is the number of `seeds`.
        shares: Share of the level that each look spends; their sum is 1.
        made: For each look that was made, the runs that had not finished then, as folders within the study.
    """

    seeds: tuple[int, ...]
    counts: tuple[int, ...]
    shares: tuple[float, ...]
    made: tuple[tuple[str, ...], ...] = ()

    @property
    def over(self) -> bool:
        """Whether all looks were made."""
        return len(self.made) == len(self.counts)

    @property
    def seen(self) -> tuple[int, ...]:
        """The seeds of the last look that was made; none before the first."""
        return self.seeds[: self.counts[len(self.made) - 1]] if self.made else ()

    @property
    def next_seeds(self) -> tuple[int, ...]:
        """The seeds of the look that comes next; there must be one."""
        return self.seeds[: self.counts[len(self.made)]]

    @property
    def share(self) -> float:
        """Share of the level that the last look may spend; that of the first one before it."""
        return self.shares[max(0, len(self.made) - 1)]

    @property
    def missing(self) -> tuple[str, ...]:
        """The runs that had not finished at the last look."""
        return self.made[-1] if self.made else ()

    def after(self, missing: Sequence[str]) -> "Looks":
        """Return the looks with one more made."""
        return replace(self, made=(*self.made, tuple(missing)))


def plan_looks(seeds: Sequence[int], n_first: int) -> Looks:
    """Plan looks between the first `n_first` of the seeds and all of them, the numbers of seeds in equal ratios.

    >>> plan_looks(range(1, 21), 5).counts, plan_looks(range(1, 21), 10).counts
    ((5, 8, 13, 20), (10, 14, 20))
    >>> [round(share, 3) for share in plan_looks(range(1, 21), 5).shares]
    [0.016, 0.048, 0.211, 0.725]
    """
    most = len(seeds)
    n_looks = min(MOST_LOOKS, max(2, 1 + int(math.log(most / n_first) / math.log(LEAST_GROWTH))))
    growth = (most / n_first) ** (1 / (n_looks - 1))
    counts = sorted({round(n_first * growth**i) for i in range(n_looks)})
    spent = [0.0, *((count / most) ** SPENDING for count in counts)]
    shares = tuple(after - before for before, after in pairwise(spent))
    return Looks(tuple(seeds), tuple(counts), shares)


def write_looks(folder: Path, looks: Looks) -> None:
    """Write looks.json of a study's folder, whole or not at all."""
    content = {"schema": SCHEMA, "seeds": list(looks.seeds), "counts": list(looks.counts)}
    content |= {"shares": list(looks.shares), "made": [list(missing) for missing in looks.made]}
    replace_file(folder / LOOKS_FILE, json.dumps(content, indent=1) + "\n")


def read_looks(folder: Path) -> Looks | None:
    """Return what looks.json of a study's folder says; None where there is none.

    Raises:
        RecordError: it cannot be read, contradicts itself, or has a newer layout.
    """
    path = folder / LOOKS_FILE
    if not path.is_file():
        return None
    remedy = f"restore it, or give --output another folder than {folder}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check_schema(content, str(path))
        looks = Looks(
            seeds=tuple(map(int, content["seeds"])),
            counts=tuple(map(int, content["counts"])),
            shares=tuple(map(float, content["shares"])),
            made=tuple(tuple(map(str, missing)) for missing in content["made"]),
        )
    except RecordError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} cannot be read ({type(error).__name__}); {remedy}") from None
    rising = all(one < other for one, other in pairwise(looks.counts))
    whole = rising and looks.counts and looks.counts[0] > 0 and looks.counts[-1] == len(set(looks.seeds))
    spent = len(looks.shares) == len(looks.counts) and min(looks.shares) > 0 and sum(looks.shares) < 1 + 1e-9
    if not whole or not spent or len(looks.made) > len(looks.counts):
        raise RecordError(f"{path} contradicts itself: its seeds, looks and levels do not fit together; {remedy}")
    return looks
