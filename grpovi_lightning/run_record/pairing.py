"""Whether the arms of a seed recorded the same: completions at step 0, held-out rows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SeedCheck:
    """Whether the arms of one seed recorded the same, as a paired comparison needs."""

    seed: int
    hashes: Mapping[str, str]
    """run -> hash of what is compared, for the runs that recorded one."""
    unknown: tuple[str, ...]
    """Runs that recorded none."""

    @property
    def differs(self) -> bool:
        """Whether two runs of this seed differ."""
        return len(set(self.hashes.values())) > 1


def by_seed(runs: Iterable[tuple[int, str, str | None]]) -> list[SeedCheck]:
    """Compare the hashes that the runs of each seed recorded of one thing.

    Args:
        runs: (seed, name, hash or None) of each run; the seeds come back in rising order.

    >>> [(check.seed, check.differs) for check in by_seed([(2, "a", "x"), (1, "a", "x"), (2, "b", "y")])]
    [(1, False), (2, True)]
    """
    seeds: dict[int, dict[str, str | None]] = {}
    for seed, run, digest in runs:
        seeds.setdefault(seed, {})[run] = digest
    return [
        SeedCheck(
            seed,
            {run: digest for run, digest in found.items() if digest is not None},
            tuple(run for run, digest in found.items() if digest is None),
        )
        for seed, found in sorted(seeds.items())
    ]
