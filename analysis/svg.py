"""matplotlib figures -> files, and the same pictures inside the page, where they follow its colours."""

import io
import re

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.style import FAINT, INK, PAPER, RC

PNG_DPI = 160
"""Dots an inch."""


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG document; the same figure and name give the same bytes.

    Args:
        figure: Made by `analysis.figures`.
        name: Salt of the ids, so that two pictures in one page share none.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """Return the figure as PDF with its fonts in it; the same figure gives the same bytes."""
    return _saved(figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None})


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG of `PNG_DPI`; the same figure gives the same bytes."""
    return _saved(figure, "png", {"Software": None})


def _saved(figure: Figure, ending: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({**RC, "pdf.fonttype": 42}):  # journals refuse the default, Type 3
        figure.savefig(buffer, format=ending, dpi=PNG_DPI, metadata=metadata)
    return buffer.getvalue()


def inline(svg: str, name: str, description: str) -> Markup:
    """Return the picture for the page: no XML prologue, ids of its own, ink from the page's style, no paper.

    Args:
        svg: As from `to_svg`; matplotlib has escaped every text in it.
        name: Prefix of the ids.
        description: Read out by screen readers; escaped here.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    for literal, replacement in ((INK, "var(--ink)"), (FAINT, "var(--faint)"), (PAPER, "none")):
        body = re.sub(re.escape(literal) + r"(?=[;\"])", replacement, body)
    # Width and height in points would keep the picture from following the page's width.
    opening, rest = body.split(">", 1)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", opening)
    return Markup(opening) + Markup(' role="img" aria-label="{}">').format(description) + Markup(rest)
