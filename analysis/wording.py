"""Numbers as people read them."""

import math

from analysis.statistics import Estimate

MISSING = "\N{EN DASH}"


def number(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits, thousands grouped; a dash for what is missing and `not reached` for infinity."""
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
    """A count, or a mean of counts: thousands grouped, one decimal where it is not whole."""
    return MISSING if math.isnan(value) else f"{value:,.1f}".removesuffix(".0")


def percent(value: float) -> str:
    """A share as a percentage with one decimal."""
    return MISSING if math.isnan(value) else f"{100 * value:.1f} %"


def interval(low: float, high: float, *, signed: bool = False) -> str:
    """`low to high`, or "" where there is no interval."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{number(low, signed=signed)} to {number(high, signed=signed)}"


def change(first: float, last: float) -> str:
    """`first → last`, or a dash where nothing is known."""
    return MISSING if math.isnan(first) else f"{number(first)} \N{RIGHTWARDS ARROW} {number(last)}"


def spread(estimate: Estimate, *, signed: bool = False) -> str:
    """`95 % bootstrap interval a to b, t interval c to d`, or that there is none."""
    bootstrap = interval(estimate.low, estimate.high, signed=signed)
    if not bootstrap:
        return "no interval from one seed"
    student = interval(estimate.t_low, estimate.t_high, signed=signed)
    return f"95 % bootstrap interval {bootstrap}" + (f", t interval {student}" if student else "")


def reached(n_reached: int, n_seeds: int, target: float) -> str:
    """`2 of 3`, or `no target`."""
    return "no target" if math.isnan(target) else f"{n_reached} of {n_seeds}"


def count(n: int, what: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
