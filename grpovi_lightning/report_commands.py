"""The commands `grpovi report`, `power` and `diagnose`, and what `grpovi compare` asks of the analysis."""

from pathlib import Path
from typing import Any

from analysis import ReportError
from grpovi_lightning.errors import UserError
from grpovi_lightning.one_line_parser import OneLineParser
from grpovi_lightning.paths import check_output
from grpovi_lightning.run_record.layout import REPORT_FOLDER


def report(arguments: list[str]) -> None:
    """Write the report of a folder of runs, and print its table; with `--watch`, write it anew as they grow.

    Raises:
        UserError: the request is wrong, or there is nothing to compare.
    """
    parser = _folder_parser("report", "Tables and pictures of a study or of any folder of runs.")
    parser.add_argument(
        "--watch", action="store_true", help="write the report anew whenever the runs have grown, until Ctrl-C"
    )
    given = parser.parse_args(arguments)
    if given.watch:
        return _watch(given.folder, metric=given.metric, baseline=given.baseline)
    analysis = print_report_of(given.folder, metric=given.metric, baseline=given.baseline)
    if not analysis.logged:
        run, reason = analysis.status.iloc[0][["run", "reason"]]
        raise UserError(f"{given.folder}: nothing to compare, because no run has scalars; {run}: {reason}")


def power(arguments: list[str]) -> None:
    """Print how many seeds differences take.

    Raises:
        UserError: the request is wrong, or there are too few seeds to tell.
    """
    from analysis import print_power

    given = _folder_parser(
        "power",
        "How many seeds a difference of a given size takes, and what the seeds of a study, or of a pilot, could have "
        "seen.",
    ).parse_args(arguments)
    try:
        print_power(given.folder, metric=given.metric, baseline=given.baseline)
    except ReportError as error:
        raise UserError(str(error)) from error


def diagnose(arguments: list[str]) -> int:
    """Print what is wrong with runs.

    Returns:
        0 where nothing was found, 1 where something was, 2 where a run could not be judged.

    Raises:
        UserError: the request is wrong, or there is no run.
    """
    from analysis import print_diagnoses

    parser = OneLineParser(
        prog="grpovi diagnose",
        description="Tells what is wrong with runs, from their logged scalars: of this package, or TensorBoard folders "
        "of TRL. Exit status: 0 nothing was found, 1 something was, 2 a run could not be judged.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="a run, a study's folder, or a folder of runs")
    parser.add_argument(
        "--gold", default=None, help="the reward component that judges the reward; default: those only observed"
    )
    given = parser.parse_args(arguments)
    try:
        found = print_diagnoses(given.runs, gold=given.gold)
    except ReportError as error:
        raise UserError(str(error)) from error
    if any(each.problem for each in found):
        return 2
    return int(any(each.findings for each in found))


def choose(folder: Path) -> Any:
    """Choose the best point of each arm of a study by its tuning runs; return the `Choice`."""
    from analysis.tuning import choose_points

    try:
        return choose_points(folder)
    except ReportError as error:
        raise UserError(str(error)) from error


def undecided(folder: Path) -> list[str]:
    """Return the questions of a study on which its report claims nothing."""
    from analysis.looks import undecided as questions

    try:
        return questions(folder)
    except ReportError as error:
        raise UserError(str(error)) from error


def print_report_of(folder: Path, **settings: Any) -> Any:
    """Analyse a folder of runs, print its table and write its report; return the `Analysis`."""
    from analysis import print_report

    if folder.is_dir():
        check_output(folder / REPORT_FOLDER, "report")
    try:
        return print_report(folder, **settings)
    except ReportError as error:
        raise UserError(str(error)) from error


def _watch(folder: Path, **settings: Any) -> None:
    from analysis.watching import watch_report

    if folder.is_dir():
        check_output(folder / REPORT_FOLDER, "report")
    try:
        watch_report(folder, **settings)
    except ReportError as error:
        raise UserError(str(error)) from error


def _folder_parser(command: str, description: str) -> OneLineParser:
    parser = OneLineParser(prog=f"grpovi {command}", description=description)
    parser.add_argument("folder", type=Path, help="a study's folder, or a folder of runs")
    parser.add_argument("--metric", default=None, help="the held-out scalar that is compared")
    parser.add_argument("--baseline", default=None, help="the arm the others are compared with")
    return parser
