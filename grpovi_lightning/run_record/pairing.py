"""The check of step 0: whether the arms of a seed began with the same completions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FirstRollouts:
    """Whether the arms of one seed began with the same completions, as a paired comparison needs."""

    seed: int
    hashes: Mapping[str, str]
    """run -> hash of its completions at step 0, for the runs that recorded one."""
    unknown: tuple[str, ...]
    """Runs that recorded none."""

    @property
    def differs(self) -> bool:
        """Whether two runs of this seed differ at step 0."""
        return len(set(self.hashes.values())) > 1


def first_rollouts(runs: Iterable[tuple[int, str, str | None]]) -> list[FirstRollouts]:
    """Compare the completions of step 0 over the runs of each seed.

    Args:
        runs: (seed, name, hash of the completions or None) of each run; the seeds come back in rising order.

    >>> [(check.seed, check.differs) for check in first_rollouts([(2, "a", "x"), (1, "a", "x"), (2, "b", "y")])]
    [(1, False), (2, True)]
    """
    seeds: dict[int, dict[str, str | None]] = {}
    for seed, run, digest in runs:
        seeds.setdefault(seed, {})[run] = digest
    return [
        FirstRollouts(
            seed,
            {run: digest for run, digest in found.items() if digest is not None},
            tuple(run for run, digest in found.items() if digest is None),
        )
        for seed, found in sorted(seeds.items())
    ]
