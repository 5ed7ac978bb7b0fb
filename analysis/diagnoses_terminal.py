"""What is wrong with runs, in a terminal: `grpovi diagnose`."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from analysis.diagnoses import Diagnosed, diagnosed
from analysis.terminal import PRINTED_WIDTH
from analysis.wording import count


def print_diagnoses(
    paths: Iterable[str | Path], console: Console | None = None, *, gold: str | None = None
) -> list[Diagnosed]:
    """Print what is found in each run below some folders, and what could not be judged.

    Args:
        paths: As for `diagnose`.
        console: Where to print; None is standard output, at 100 columns where that is no terminal.
        gold: As for `diagnose`.

    Returns:
        One entry a run.

    Raises:
        ReportError: A path is no folder, or there is no run in it.
    """
    found = [each for path in paths for each in diagnosed(path, gold=gold)]
    console = console or Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH)
    console.print(*(printed(each) for each in found), _summary(found), sep="\n")
    return found


def printed(run: Diagnosed) -> Group:
    """Compose the findings of one run."""
    parts: list[Text | Padding] = [Text(f"{run.folder}", style="bold", overflow="fold")]
    if run.problem:
        return Group(*parts, _indented(f"not judged: {run.problem}", style="red"))
    for finding in run.findings:
        parts.append(_indented(Text.assemble((finding.kind, "bold yellow"), f": {finding.evidence.text}")))
        parts.append(_indented(f"threshold: {finding.threshold} ({finding.source})", 4))
        parts.append(_indented(" ".join(filter(None, (finding.remedy, run.way_back(finding)))), 4))
    if not run.findings:
        parts.append(_indented("nothing found", style="green"))
    if run.not_judged:
        missing = "; ".join(f"{kind} ({', '.join(tags)})" for kind, tags in run.not_judged)
        parts.append(_indented(f"not judged, because not logged: {missing}", style="dim"))
    return Group(*parts)


def _indented(text: str | Text, by: int = 2, style: str = "") -> Padding:
    return Padding(Text(text, style=style) if isinstance(text, str) else text, (0, 0, 0, by))


def _summary(found: Sequence[Diagnosed]) -> Text:
    ill = sum(bool(each.findings) for each in found)
    unread = sum(each.problem is not None for each in found)
    tail = f", {unread} could not be judged" if unread else ""
    return Text(f"\n{ill} of {count(len(found), 'run')} with findings{tail}", style="bold")
