"""Numbers as people read them."""

import math

from analysis.statistics import Estimate

MISSING = "\N{EN DASH}"


def number(value: float | None, *, signed: bool = False) -> str:
    """Write three significant digits, thousands grouped; a dash for what is missing, `not reached` for infinity.

    >>> number(0.51234, signed=True), number(12345.6), number(math.inf)
    ('+0.512', '12,346', 'not reached')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "not reached"
    sign = "+" if signed and value > 0 else ""
    if abs(value) >= 1000:
        return f"{sign}{value:,.0f}"
    text = f"{value:#.3g}".rstrip(".")
    return (sign + text).replace("-", "\N{MINUS SIGN}", 1)


def amount(value: float) -> str:
    """Write a count, or a mean of counts: thousands grouped, one decimal where it is not whole.

    >>> amount(1200), amount(2.5)
    ('1,200', '2.5')
    """
    return MISSING if math.isnan(value) else f"{value:,.1f}".removesuffix(".0")


def percent(value: float) -> str:
    """Write a share as a percentage with one decimal.

    >>> percent(0.125)
    '12.5 %'
    """
    return MISSING if math.isnan(value) else f"{100 * value:.1f} %"


def interval(low: float, high: float, *, signed: bool = False) -> str:
    """Write `low to high`, or "" where there is no interval.

    >>> interval(0.25, 0.5)
    '0.250 to 0.500'
    """
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{number(low, signed=signed)} to {number(high, signed=signed)}"


def change(first: float, last: float) -> str:
    """Write `first → last`, or a dash where nothing is known."""
    return MISSING if math.isnan(first) else f"{number(first)} \N{RIGHTWARDS ARROW} {number(last)}"


def spread(estimate: Estimate, *, signed: bool = False) -> str:
    """Write `95 % interval a to b`, or that there is none."""
    ends = interval(estimate.low, estimate.high, signed=signed)
    return f"95 % interval {ends}" if ends else "no interval from one seed"


def reached(n_reached: int, n_seeds: int, target: float) -> str:
    """Write how many seeds reached the target, if there is one.

    >>> reached(2, 3, target=0.5), reached(0, 3, target=math.nan)
    ('2 of 3', 'no target')
    """
    return "no target" if math.isnan(target) else f"{n_reached} of {n_seeds}"


def count(n: int, what: str) -> str:
    """Write a number with its noun.

    >>> count(1, "seed"), count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
