"""The command `grpovi compare`."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from grpovi_lightning.one_line_parser import OneLineParser
from grpovi_lightning.report_commands import choose, print_report_of, undecided
from grpovi_lightning.study import Services, compare, dry_run
from grpovi_lightning.study.launchers import LAUNCHERS, make_launcher

Preflight = Callable[[list[str]], None]
SettingNames = Callable[[list[str]], list[str]]


def run(arguments: list[str], preflight: Preflight, settings: SettingNames) -> int:
    """Run a study, or with `--dry-run` print what it would run; return the exit status.

    Args:
        arguments: the command line after `compare`.
        preflight: as in `Services`.
        settings: likewise.

    Raises:
        UserError: the request is wrong, or the study cannot run as written.
    """
    given = _parser().parse_args(arguments)
    # Each point is built once to be checked; that its seed was set says nothing.
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    services = Services(
        preflight=preflight, settings=settings, choose=choose, undecided=undecided, report=print_report_of
    )
    options = {
        "seeds": given.seeds,
        "until_decided": given.until_decided,
        "jobs": given.jobs,
        "output": given.output,
        "launcher": make_launcher(given.launcher, given.launcher_settings, given.ray_address),
    }
    if given.dry_run:
        print("\n".join(dry_run(given.study, services, **options)))
        return 0
    return compare(given.study, services, **options)


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="grpovi compare", description="Runs the arms of a study for every seed, then reports.")
    parser.add_argument("study", type=Path, help="the study's YAML file")
    parser.add_argument("--seeds", type=_seeds, default=None, help="seeds instead of the study's, such as 1,2,3")
    parser.add_argument(
        "--until-decided",
        type=int,
        default=None,
        metavar="MAX",
        help="add seeds in batches until every verdict claims a difference, MAX seeds at most; judged at looks planned "
        "beforehand, each at a level of its own, so that wrong claims stay as rare as with a fixed number of seeds",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        help="runs at a time; default: one for each core, with --launcher ray or slurm all at once, queued there",
    )
    parser.add_argument("--output", type=Path, default=Path("runs"), help="where the study's folder is made")
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="local",
        help="where runs are started: on this machine, on a Ray cluster, or as SLURM jobs; the latter two need "
        "--output on a file system that all machines share (docs/many-machines.md)",
    )
    parser.add_argument(
        "--launcher-settings",
        type=Path,
        default=None,
        metavar="YAML",
        help="for ray and slurm: what runs need (cpus, gpus, memory_gb), and the launcher's own settings",
    )
    parser.add_argument(
        "--ray-address",
        default=None,
        metavar="ADDRESS",
        help="Ray cluster to use; default: RAY_ADDRESS, else a cluster of this machine alone",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the study and print its runs and about how long they take"
    )
    return parser


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected integers such as 1,2,3") from None
