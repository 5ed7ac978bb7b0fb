"""The efficiency table and the verdicts in a terminal of 100 columns."""

import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis import several_tasks
from analysis.efficiency import Comparison
from analysis.looks import looks_sentences
from analysis.online import OnlineArm
from analysis.report import write_analysis
from analysis.statistics import Estimate
from analysis.study import Analysis, analyse
from analysis.tables import rows_where
from analysis.tuned import sentences_of
from analysis.wording import amount, change, interval, number, reached

PRINTED_WIDTH = 100
"""Columns where the output goes to a file or a pipe."""


def print_report(
    study_dir: str | Path,
    console: Console | None = None,
    *,
    metric: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> Analysis:
    """Write the report as `write_report` does, and print the efficiency table, the verdicts, and where the report lies.

    `console` is where to print; None is standard output, at 100 columns where that is no terminal.

    Returns:
        What was reported.
    """
    analysis = analyse(study_dir, metric=metric, baseline=baseline, target=target)
    index = write_analysis(analysis)
    console = console or Console(width=None if sys.stdout.isatty() else PRINTED_WIDTH)
    console.print(terminal_report(analysis), Text(f"\nreport: {index}", overflow="fold"))
    return analysis


def terminal_report(analysis: Analysis) -> Group:
    """Compose heading, table, verdicts, and the runs that do not count."""
    settings = analysis.settings
    parts: list[Table | Text | Padding] = [
        Text.assemble((settings.name, "bold"), f": {settings.metric} ({settings.metric_origin}); higher is better"),
        terminal_table(analysis.comparisons),
    ]
    if analysis.online:
        parts.append(online_terminal_table(analysis.online))
    parts += [Text(note, style="yellow") for note in settings.notes]
    parts += [Text(sentence) for sentence in looks_sentences(settings)]
    for question, sentences in sentences_of(analysis.tuned) if analysis.tuned else ():
        parts.append(Text(f"\n{question}", style="bold"))
        parts += [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in sentences]
    if analysis.tasks:
        parts += [Text("\nOver several tasks", style="bold")]
        parts += [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in several_tasks.sentences_of(analysis.tasks)]
    for verdict in analysis.verdicts:
        parts.append(Text(f"\n{verdict.headline}", style="bold"))
        if analysis.tuned is None:  # else its sentences say the same of the arms
            parts += [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in verdict.sentences]
    excluded = rows_where(analysis.status, analysis.status["reason"].notna())
    if len(excluded):
        parts.append(Text(f"\nNot counted: {len(excluded)} of {len(analysis.status)} runs", style="bold"))
    parts += [
        Padding(Text(f"{run}: {reason}"), (0, 0, 0, 2))
        for run, reason in zip(excluded["run"], excluded["reason"], strict=True)
    ]
    return Group(*parts)


def terminal_table(comparisons: list[Comparison]) -> Table:
    """Return the efficiency table with an interval under every number; readable in 100 columns."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("arm\nagainst", overflow="fold", min_width=10)
    table.add_column("reached\nof seeds", justify="right")
    for heading in ("steps to\ntarget", "speedup", "final", "area: paired\ndifference"):
        table.add_column(heading, justify="right", min_width=10)  # of the widest number, which is not to be cut
    for comparison in comparisons:
        baseline = f"\n{comparison.baseline}" if comparison.baseline else ""
        excluded = f"\n{comparison.n_excluded} excluded" if comparison.n_excluded else ""
        table.add_row(
            Text.assemble((comparison.arm, "bold"), (baseline, "dim")),
            Text.assemble(
                reached(comparison.n_reached, len(comparison.seeds), comparison.target.value), (excluded, "yellow")
            ),
            _cell(comparison.steps),
            _cell(comparison.speedup.estimate),
            _cell(comparison.final),
            _cell(comparison.paired, signed=True),
        )
    return table


def online_terminal_table(arms: list[OnlineArm]) -> Table:
    """Tabulate what learning during training was worth and what it cost; readable in 100 columns."""
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("arm", overflow="fold", min_width=12)
    headings = ("labels", "fresh pair\naccuracy", "agreement:\nfirst, last", "seconds a round:\nearly, late")
    for heading in (*headings, "state, kB:\nfirst, last"):
        table.add_column(heading, justify="right")
    for arm in arms:
        unanswered = f"\n{amount(arm.unanswered.point)} unanswered" if arm.unanswered.point > 0 else ""
        table.add_row(
            Text(arm.arm, style="bold"),
            Text.assemble(amount(arm.labels.point), (unanswered, "yellow")),
            _cell(arm.pair_accuracy),
            change(arm.agreement_first.point, arm.agreement_last.point),
            change(arm.seconds_early.point, arm.seconds_late.point),
            change(arm.bytes_first.point / 1000, arm.bytes_last.point / 1000),
        )
    return table


def _cell(estimate: Estimate, *, signed: bool = False) -> Text:
    ends = interval(estimate.low, estimate.high, signed=signed)
    return Text.assemble(number(estimate.point, signed=signed), (f"\n{ends}" if ends else "", "dim"))
