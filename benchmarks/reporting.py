"""What the benchmarks print and write alike: tables, durations, the machine, the CSV of all measurements, pictures."""

import csv
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from analysis.style import FAINT, RC
from grpovi_lightning.errors import UserError

PRINTED_WIDTH = 100
SUFFIXES = {"table": (".csv",), "picture": (".svg", ".png")}
HEAD = 4096
"""Bytes at the beginning of a file in which its mark is looked for."""


def consoles() -> tuple[Console, Console]:
    """Where results go, and where progress goes."""
    out = Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH, highlight=False, markup=False)
    return out, Console(stderr=True, style="dim", highlight=False, markup=False)


def titled_table(title: str, *columns: str) -> Table:
    """An empty table with numbers to the right."""
    table = Table(title=f"\n{title}", box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def duration(seconds: float) -> str:
    """Three digits in the unit that suits."""
    seconds = float(f"{seconds:.3g}")  # first, so that 999.9 µs is 1.00 ms
    unit, factor = ("s", 1.0) if seconds >= 1.0 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    value = seconds * factor
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def machine(threads: int) -> str:
    """What one must know of the machine to read the numbers."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"processor: {processor}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; threads: {threads}\n"
        f"torch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    )


def training_device() -> str:
    """What the steps run on, here as in TRL's script: the GPU that there is, else the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "the processor"


def default_output(name: str, suffix: str) -> Path:
    """A new file for each run, in a folder that git ignores."""
    return Path("runs") / "benchmarks" / f"{name}_{datetime.now():%Y%m%d_%H%M%S}{suffix}"


def checked_output(path: Path, kind: Literal["table", "picture"], mark: str) -> Path:
    """The path of an output, before anything is measured; its folder is made.

    Args:
        path: where to write.
        kind: decides what the name may end in.
        mark: stands near the beginning of every file that the benchmark writes; only such a file is replaced.

    Raises:
        UserError: the name ends otherwise, or something else lies there.
    """
    if path.suffix not in SUFFIXES[kind]:
        raise UserError(f"--output: got {path}, expected a name that ends in {' or '.join(SUFFIXES[kind])}")
    if path.is_dir() or (path.exists() and mark.encode() not in _head(path)):
        raise UserError(f"--output: got {path}, which is there and no {kind} of this benchmark; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Writes the CSV and says so."""
    verb = "replaced" if path.exists() else "written"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return f"{verb}: {path}"


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, what the axes show, and faint lines to read the values by."""
    axes.set_title(title, pad=8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def save_picture(figure: Figure, path: Path, mark: str) -> str:
    """Writes the SVG or PNG, with the mark in its metadata, and says so."""
    verb = "replaced" if path.exists() else "written"
    field = "Creator" if path.suffix == ".svg" else "Software"
    with matplotlib.rc_context(RC):
        figure.savefig(path, metadata={field: mark}, dpi=160)
    return f"{verb}: {path}"
