"""Colours and dashes of the arms, and the look of every figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's colours that stand out on white and on black, without the yellow.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES: tuple[tuple[str, str], ...] = (
    ("solid", ""),
    ("dashed", "6 3"),
    ("dotted", "1.5 2.5"),
    ("dashdot", "6 2 1.5 2"),
)
"""(matplotlib's name, SVG's stroke-dasharray)."""

INK = "#1f2328"
FAINT = "#8c959f"
PAPER = "#ffffff"

RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "text.parse_math": False,  # a dollar sign in an arm's name is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # Verdana has nearly the same widths, where DejaVu is not installed
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn: `line` is matplotlib's name of the dash, `dasharray` SVG's."""

    colour: str
    line: str
    dasharray: str


def arm_styles(
    arms: Sequence[str], baselines: Mapping[str, str], adjustments: Mapping[str, str]
) -> dict[str, ArmStyle]:
    """Give arms with the same adjustment one colour and with the same baseline one dash, if that keeps them apart.

    Args:
        arms: All arms, in order.
        baselines: arm -> baseline.
        adjustments: arm -> class name of its adjustment, where it is known.

    Returns:
        A style an arm; arms with the same adjustment and the same baseline get further colours, then further dashes. No
        two arms have one style, up to 24 arms.
    """
    families = list(dict.fromkeys(baselines.get(arm, arm) for arm in arms))
    colours: dict[str, str] = {}
    styles: dict[str, ArmStyle] = {}
    for arm in arms:
        line, dasharray = DASHES[families.index(baselines.get(arm, arm)) % len(DASHES)]
        algorithm = adjustments.get(arm, arm)
        colour = colours.setdefault(algorithm, PALETTE[len(colours) % len(PALETTE)])
        wanted = ArmStyle(colour, line, dasharray)
        if wanted in styles.values():
            others = [ArmStyle(other, *dash) for dash in ((line, dasharray), *DASHES) for other in PALETTE]
            free = [style for style in others if style not in styles.values()]
            # First a colour that stands for no other adjustment, then any, then another dash.
            unused = [style for style in free if style.line == line and style.colour not in colours.values()]
            wanted = next(iter((*unused, *free)), wanted)
        styles[arm] = wanted
    return styles
