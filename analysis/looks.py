"""Studies whose seeds were added until the verdicts were decided: what that means for a report, and which are not."""

from pathlib import Path

from analysis.settings import Settings
from analysis.statistics import LEVEL
from analysis.study import Analysis, analyse
from analysis.wording import number
from grpovi_lightning.run_record.looks import Looks


def undecided(study_dir: str | Path) -> list[str]:
    """Return the questions of a study on which its report claims nothing, at the last look that was made.

    Of a tuned study those between best points count, and the contrasts.

    Raises:
        ReportError: As `write_report`.
    """
    return undecided_of(analyse(study_dir))


def undecided_of(analysis: Analysis) -> list[str]:
    """Return the same of what has been computed."""
    best = None if analysis.tuned is None else {arm.point for arm in analysis.tuned.arms}
    needed = [verdict for verdict in analysis.verdicts if best is None or verdict.arm in best]
    return [verdict.question for verdict in needed if not verdict.decided]


def looks_sentences(settings: Settings) -> list[str]:
    """Say how seeds were added and how strict each look is; nothing for a study of a fixed number of seeds."""
    looks = settings.looks
    if looks is None:
        return []
    planned = f"Seeds were added until every verdict was decided, {looks.counts[-1]} at most"
    if len(looks.counts) == 1:
        planned += f": one look was planned, at {_counts(looks.counts)} seeds, at 5 %."
    else:
        levels = [f"{100 * LEVEL * share:.2g} %" for share in looks.shares]
        planned += (
            f": {len(looks.counts)} looks were planned, at {_counts(looks.counts)} seeds, with levels of their own "
            f"({', '.join(levels)}) that add up to 5 %."
        )
    return [planned, _made(looks)]


def _made(looks: Looks) -> str:
    if not looks.made:
        return f"No look was made yet, so no seed counts before the look at {looks.counts[0]} seeds."
    level = LEVEL * looks.share
    made = (
        f"{len(looks.made)} of {len(looks.counts)} looks were made, the last at {len(looks.seen)} seeds. This report "
        f"is that look: it claims what a test at {100 * level:.2g} % shows, and its intervals are Student's t at "
        f"{number(100 * (1 - level))} %, wide enough to hold in 95 % of studies over all looks together."
    )
    if looks.missing:
        made += f" Not finished at that look, and left out: {', '.join(looks.missing)}."
    return made


def _counts(counts: tuple[int, ...]) -> str:
    *first, last = map(str, counts)
    return f"{', '.join(first)} and {last}" if first else last
