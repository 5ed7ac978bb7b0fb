"""The chart of the page in which the reader picks a metric: its data, and the scripts that draw it."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.curves import Curve, Curves, curves_of
from analysis.figures import mean_curve
from analysis.style import ArmStyle
from grpovi_lightning import metric_keys

DATA_BYTES = 2_000_000
"""Of the chart's numbers in the page, at most."""

POINTS = (300, 200, 150, 100, 70, 50)
"""Points of a curve, at most: the first number with which everything fits into `DATA_BYTES`."""

_BYTES_A_POINT = 16 / 3  # a float32 in base64
_BYTES_A_CURVE = 30  # names and brackets around it


@dataclass(frozen=True)
class Chart:
    """The chart's content.

    Attributes:
        data: What `chart.js` reads, ready for JSON.
        groups: The metrics to pick from, by heading.
        points: What curves were thinned to; None where no curve is longer.
        left_out: Metrics for which the page has no room.
    """

    data: Mapping[str, Any]
    groups: Mapping[str, Sequence[str]]
    points: int | None
    left_out: Sequence[str]


@dataclass(frozen=True)
class Script:
    """A script of the page, and its hash for the page's security policy, which lets no other run."""

    text: str

    @property
    def markup(self) -> Markup:
        return Markup(self.text)

    @property
    def source(self) -> str:
        """The expression that allows it."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"


def page_scripts(*, chart: bool) -> list[Script]:
    """Return the scripts of the page, in order; BokehJS, 1.4 MB, only where there is a chart to draw."""
    folder, bokeh = Path(__file__).parent, files("bokeh") / "server" / "static" / "js"
    drawing = [bokeh / "bokeh.min.js", bokeh / "bokeh-api.min.js", folder / "chart.js"] if chart else []
    return [Script(file.read_text(encoding="utf-8")) for file in (folder / "tables.js", *drawing)]


def chart_of(runs: pd.DataFrame, metric: str, styles: Mapping[str, ArmStyle]) -> Chart | None:
    """Collect every metric with a curve of at least two values: means over seeds, and the seeds.

    Values are the logged ones, as 32-bit floats, which is what event files hold; of curves that are thinned, means over
    neighbouring steps.

    Args:
        runs: Rows of the runs that count, as from `analysis.load_runs`.
        metric: The compared metric, which is shown first.
        styles: Of all arms, in order.

    Returns:
        The chart, or None where there is no such curve.
    """
    found = {}
    for name, rows in runs.groupby("metric", observed=True, sort=True):
        lines = _lines(curves_of(rows, str(name)))
        if any(curve.values.size > 1 for _, _, curve in lines):
            found[str(name)] = lines
    if not found:
        return None
    names = sorted(found, key=lambda name: (name != metric, not name.startswith(metric_keys.EVAL_PREFIX), name))
    points = next((n for n in POINTS if sum(_size(found[name], n) for name in names) <= DATA_BYTES), POINTS[-1])
    sizes = np.cumsum([_size(found[name], points) for name in names])
    kept = [name for name, size in zip(names, sizes, strict=True) if size <= DATA_BYTES or name == metric]
    is_thinned = any(curve.values.size > points for name in kept for _, _, curve in found[name])
    return Chart(
        data=_data({name: found[name] for name in kept}, styles, points),
        groups=_grouped(kept, metric),
        points=points if is_thinned else None,
        left_out=[name for name in names if name not in kept],
    )


_Lines = list[tuple[str, int | None, Curve]]
"""(arm, seed or None for the mean, curve)"""


def _lines(curves: Curves) -> _Lines:
    lines: _Lines = []
    for arm, seeds in curves.items():
        steps, values = mean_curve(list(seeds.values()))
        if len(seeds) > 1 and steps.size:
            lines.append((arm, None, Curve(steps, values.mean(axis=0))))
        lines += [(arm, seed, curve) for seed, curve in seeds.items()]
    return lines


def _size(lines: _Lines, points: int) -> float:
    return sum(min(curve.values.size, points) * _BYTES_A_POINT + _BYTES_A_CURVE for _, _, curve in lines)


def _data(found: Mapping[str, _Lines], styles: Mapping[str, ArmStyle], points: int) -> dict[str, Any]:
    """Write the curves as `[arm, seed, steps, values]`; equal steps stand once, in `grids`, and are named by place."""
    arms = {arm: place for place, arm in enumerate(styles)}
    grids: dict[str, int] = {}
    metrics = {}
    for name, lines in found.items():
        metrics[name] = []
        for arm, seed, curve in lines:
            thin = curve.thinned(points)
            grid = grids.setdefault(_base64(thin.steps), len(grids))
            metrics[name].append([arms[arm], seed, grid, _base64(thin.values)])
    dashes = [[float(part) for part in style.dasharray.split()] for style in styles.values()]
    return {
        "arms": [
            {"name": arm, "colour": style.colour, "dash": dash}
            for (arm, style), dash in zip(styles.items(), dashes, strict=True)
        ],
        "grids": list(grids),
        "metrics": metrics,
    }


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _grouped(names: Iterable[str], metric: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {"compared": [], "held out": [], "training": []}
    for name in names:
        held_out = name.startswith(metric_keys.EVAL_PREFIX)
        groups["compared" if name == metric else "held out" if held_out else "training"].append(name)
    return {heading: members for heading, members in groups.items() if members}
