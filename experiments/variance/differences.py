"""Draws the two studies of the variance methods: how far each method's area lies from that of its baseline.

    python experiments/variance/differences.py runs/variance runs/variance-rule PICTURE.png

Prints the same as a table: the difference in area over steps (equally many samples), and over seconds of training, with
the answers of the report, which are corrected (Holm) over all differences of a study.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from analysis.claims import Claim, claims_of
from analysis.study import analyse
from analysis.style import FAINT, INK, PALETTE, RC

ANSWERS = {1: "higher", -1: "lower", 0: "no difference seen"}


@dataclass(frozen=True)
class Row:
    """One method against its baseline.

    Attributes:
        steps: difference in area over equally many steps.
        seconds: the same over equal seconds of training.
    """

    arm: str
    baseline: str
    steps: Claim
    seconds: Claim


def rows_of(folder: Path) -> list[Row]:
    """Return the methods of a study, in its order."""
    found = analyse(folder)
    steps = [claims.area for claims in claims_of([(each, None) for each in found.paired])]
    seconds = {(each.arm, each.baseline): each.seconds for each in found.equal_cost}
    return [
        Row(each.arm, str(each.baseline), claim, seconds[each.arm, str(each.baseline)])
        for each, claim in zip(found.paired, steps, strict=True)
    ]


def line(row: Row) -> str:
    """Return a row of a Markdown table."""
    cells = [f"{_spread(claim)}, {ANSWERS[claim.direction]}" for claim in (row.steps, row.seconds)]
    return f"| {row.arm} | {row.baseline} | {' | '.join(cells)} |"


def _spread(claim: Claim) -> str:
    each = claim.estimate
    return f"{each.point:+.4f} ({each.low:+.4f} to {each.high:+.4f})"


def draw(studies: Sequence[tuple[str, list[Row]]]) -> Figure:
    """Draw the differences over steps with their intervals, one panel a study; those that may be claimed in colour."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9.0, 4.0), layout="constrained")
        for axes, (title, rows) in zip(figure.subplots(1, len(studies), sharex=True), studies, strict=True):
            axes.set_title(title)
            axes.axvline(0.0, color=FAINT, linewidth=0.8)
            for place, row in enumerate(reversed(rows)):
                each, claimed = row.steps.estimate, row.steps.direction
                colour = {1: PALETTE[2], -1: PALETTE[1], 0: INK}[claimed]
                axes.plot([each.low, each.high], [place, place], color=colour, linewidth=1.5)
                axes.plot(each.point, place, marker="o", color=colour, markersize=5)
            axes.set_yticks(range(len(rows)), [f"{row.arm} minus {row.baseline}" for row in reversed(rows)], color=INK)
            axes.set_xlabel("difference in area, 95 % interval")
        return figure


if __name__ == "__main__":
    titles = ("learned reward", "rule of 0 and 1")
    studies = [(title, rows_of(Path(folder))) for title, folder in zip(titles, sys.argv[1:3], strict=True)]
    for title, rows in studies:
        print(f"{title}:", *map(line, rows), sep="\n")
    draw(studies).savefig(sys.argv[3], dpi=150)
