"""`grpovi report --watch`: the report is written anew whenever its runs have grown."""

import os
import time
from pathlib import Path

from analysis.errors import ReportError
from analysis.report import write_analysis
from analysis.study import analyse
from analysis.wording import count
from grpovi_lightning.run_record.layout import REPORT_FOLDER, STATUS_FILE, STUDY_FILE

EVERY_SECONDS = 10.0
"""Between two looks at the runs."""

_REST = 5
"""Seconds of rest for each second that a refresh took: the runs may share the machine."""

_GROWING = (STATUS_FILE, STUDY_FILE, "metrics.csv")


def watch_report(
    study_dir: str | Path,
    *,
    metric: str | None = None,
    baseline: str | None = None,
) -> None:
    """Write the report, and again whenever a run has grown, until the user interrupts (Ctrl-C).

    Each refresh prints one line. Once there was a report, a folder that cannot be analysed for a while says so
    in that line instead; the report stays as it was.

    Args:
        study_dir: As of `write_report`, like `metric` and `baseline`.
        metric: The tag to compare.
        baseline: The arm that all others are compared with.

    Raises:
        ReportError: As of `write_report`, on the first refresh.
    """
    folder, seen, is_first = Path(study_dir), None, True
    try:
        while True:
            sizes, started = _sizes(folder), time.monotonic()
            if sizes != seen:
                try:
                    line = _refresh(folder, metric, baseline)
                except ReportError as error:
                    if is_first:
                        raise
                    line = f"not written: {error}"
                print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
                seen, is_first = sizes, False
            time.sleep(max(EVERY_SECONDS, _REST * (time.monotonic() - started)))
    except KeyboardInterrupt:
        return


def _refresh(folder: Path, metric: str | None, baseline: str | None) -> str:
    analysis = analyse(folder, metric=metric, baseline=baseline)
    index = write_analysis(analysis)
    counted = sum(reason is None for reason in analysis.status["reason"])
    return f"{count(len(analysis.status), 'run')}, {counted} of them {'counts' if counted == 1 else 'count'}: {index}"


def _sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of the files that grow with the runs: path -> bytes."""
    sizes = {}
    for name, children, names in os.walk(folder):
        children[:] = [child for child in children if child != REPORT_FOLDER]
        for file in names:
            if file in _GROWING or "tfevents" in file:
                path = Path(name, file)
                if path.exists():  # not replaced just now
                    sizes[str(path)] = path.stat().st_size
    return sizes
