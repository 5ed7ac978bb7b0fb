"""What is wrong with a run, read off its logged scalars.

Each diagnosis is a `Rule`: a pure function of the scalars, with its threshold and the threshold's source. NumPy and the
standard library only, so that `analysis` can import it on a machine without torch.
"""

from grpovi_lightning.diagnoses.checkpoints import kept_checkpoint
from grpovi_lightning.diagnoses.held_out import OVER_OPTIMISED, PLATEAU_REACHED, best_step
from grpovi_lightning.diagnoses.logged import Logged, is_read, logged
from grpovi_lightning.diagnoses.policy import CLIPPED_RATIOS, CUT, ENTROPY, KL_RUN_AWAY, LENGTH
from grpovi_lightning.diagnoses.rewards import DOMINATED, FLAT, FLIPPED, LARGE_ADVANTAGES
from grpovi_lightning.diagnoses.rule import Evidence, Finding, Rule
from grpovi_lightning.diagnoses.series import WINDOW, Series

RULES: tuple[Rule, ...] = (
    OVER_OPTIMISED,
    FLAT,
    DOMINATED,
    LARGE_ADVANTAGES,
    FLIPPED,
    LENGTH,
    CUT,
    ENTROPY,
    KL_RUN_AWAY,
    CLIPPED_RATIOS,
    PLATEAU_REACHED,
)


def diagnose(run: Logged, *, ended: bool = True) -> list[Finding]:
    """Return what the rules find, in their order.

    >>> steps = range(20)
    >>> run = logged({"reward": Series.of(steps, steps), "completions/clipped_ratio": Series.of(steps, [0.75] * 20)})
    >>> [finding.kind for finding in diagnose(run)]
    ['completions cut off']

    Args:
        run: its scalars.
        ended: whether the run is over, so that rules judge which take the whole of it.
    """
    return [finding for rule in RULES if (ended or not rule.at_end) and (finding := rule(run))]


def not_judged(run: Logged) -> dict[str, tuple[str, ...]]:
    """Return the kinds that could not be judged, each with the scalars that were not logged."""
    return {rule.kind: missing for rule in RULES if (missing := rule.missing(run))}


__all__ = [
    "RULES",
    "WINDOW",
    "Evidence",
    "Finding",
    "Logged",
    "Rule",
    "Series",
    "best_step",
    "diagnose",
    "is_read",
    "kept_checkpoint",
    "logged",
    "not_judged",
]
