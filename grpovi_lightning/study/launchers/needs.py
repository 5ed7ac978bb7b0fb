"""What a run asks of the machine that it is placed on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.checking import close_matches
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.specification import Study


@dataclass(frozen=True)
class Needs:
    """CPUs, GPUs and memory of one run."""

    cpus: float | None = None
    """None: the threads of the run."""
    gpus: float = 0
    memory_gb: float | None = None
    """None: whatever the cluster gives to a run that does not ask."""

    def __post_init__(self) -> None:
        """Check that they are numbers, and not below zero.

        Raises:
            UserError: they are not.
        """
        for each in fields(self):
            value: Any = getattr(self, each.name)
            if value is None and each.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise UserError(f"{each.name} is {value!r}, expected a number of at least 0")


@dataclass(frozen=True)
class NeedsOfRuns:
    """What all runs of a study ask for, and what single arms and stages ask for instead."""

    every: Needs = Needs()
    instead: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Arm, or `prepare/<stage>` -> what it needs in place of the above."""

    def of(self, run: Run) -> Needs:
        """Return what a run needs; CPUs always as a number."""
        name = run.point.arm if run.point is not None else run.owner
        found = replace(self.every, **self.instead.get(name if run.seed is not None else f"prepare/{name}", {}))
        return found if found.cpus is not None else replace(found, cpus=run.threads)

    def check(self, study: Study) -> None:
        """Check that all it names is in the study.

        Raises:
            UserError: an arm or a stage is not.
        """
        known = [arm.name if arm.point is None else arm.point.arm for arm in study.arms]
        known += [f"prepare/{stage.name}" for stage in study.prepare]
        for name in self.instead:
            if name not in known:
                raise UserError(
                    f"launcher settings: runs: the study has no {name!r}{close_matches(name, known)}; expected one of "
                    f"{', '.join(dict.fromkeys(known))}"
                )
