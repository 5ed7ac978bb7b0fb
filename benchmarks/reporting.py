"""What the scripts print and write: tables, durations, the machine, CSV files, pictures."""

import io
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from analysis.style import FAINT, RC

PRINTED_WIDTH = 100


def consoles() -> tuple[Console, Console]:
    """Return where results go, and where progress goes."""
    out = Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH, highlight=False, markup=False)
    return out, Console(stderr=True, style="dim", highlight=False, markup=False)


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str] | None], note: str = ""
) -> None:
    """Print rows of texts with numbers to the right and a note below; None among the rows is a rule."""
    table = Table(title=f"\n{title}", box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    console.print(table, *[note] if note else [], sep="\n")


def duration(seconds: float) -> str:
    """Return three digits in the unit that suits."""
    seconds = float(f"{seconds:.3g}")  # first, so that 999.9 µs is 1.00 ms
    unit, factor = ("s", 1.0) if seconds >= 1.0 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    value = seconds * factor
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def machine(threads: int) -> str:
    """Return what one must know of the machine to read the numbers."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    named = re.search(r"^model name\s*: (.*)", info, flags=re.MULTILINE)
    cores = f"{named[1] if named else platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    versions = f"torch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    return f"processor: {cores}; threads: {threads}\n{versions}"


def training_device() -> str:
    """Return what the steps run on, here as in TRL's script: the GPU that there is, else the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "the processor"


def output_path(name: str) -> Path:
    """Return where to write, without the suffix: a new name for each run, in a folder that git ignores."""
    folder = Path("runs") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}_{datetime.now():%Y%m%d_%H%M%S}"


def write_table(frame: pd.DataFrame, path: Path) -> str:
    """Write the CSV and return the line that says so."""
    frame.to_csv(path.with_suffix(".csv"), index=False)
    return f"written: {path.with_suffix('.csv')}"


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the title and the names of the axes, and draw faint lines to read the values by."""
    axes.set(title=title, xlabel=x, ylabel=y, axisbelow=True)
    axes.grid(True, axis="y", color=FAINT, alpha=0.25, linewidth=0.6)


def save_picture(figure: Figure, path: Path) -> str:
    """Write the PNG and return the line that says so."""
    drawn = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(drawn, dpi=130)
    # 256 colours are enough for lines, bars and text, and take a third of the space.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        path.with_suffix(".png"), optimize=True
    )
    return f"written: {path.with_suffix('.png')}"
