"""The command `grpovi`; see `_USAGE` for what it does."""

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from grpovi_lightning.preflight import quiet

_USAGE = """usage: grpovi COMMAND [arguments]

  fit      train one run:      grpovi fit --config A.yaml [--config B.yaml ...] [--key value ...]
  validate evaluate on the held-out table; the arguments are those of fit, with --ckpt_path FILE
  test     evaluate on the test table, likewise
  task     write the embedded task: grpovi task --output DIR [--seed N ...]
  compare  run a study:        grpovi compare STUDY.yaml [--seeds 1,2,3] [--jobs N] [--output DIR] [--dry-run]
                               [--until-decided MAX]
  report   analyse a folder of runs: grpovi report DIR [--metric NAME] [--baseline ARM] [--watch]
  power    say how many seeds a difference takes, from a study or a pilot:
                               grpovi power DIR [--metric NAME] [--baseline ARM]
  diagnose tell what is wrong with runs, of TRL as well: grpovi diagnose RUN... [--gold NAME]
  methods  list the adjustments, advantages, losses and the rest that a run can be made of
  sample   sample completions of a policy and score them, without training:
                               grpovi sample --config A.yaml --output DIR [--preferences REWARD]
  teach    measure which reward will teach a policy fastest, and what GRPOVI can add: the arguments are those of sample
  relabel  let a reward decide the preferences of a table anew, without training:
                               grpovi relabel --config A.yaml --output DIR
  replay   say what other methods would have made of the completions of a run, without training:
                               grpovi replay RUN [--config ARM.yaml ...] ... [--output FILE]
  adjust   increase the variance of a table of rewards, without training:
                               grpovi adjust FILE --lower 0 --upper 1 [--ties merge|split] [--output FILE]
  push     publish what a run trained on the Hugging Face hub, with a model card:
                               grpovi push RUN USER/NAME [--what model|adapter] [--private] [--revision BRANCH]
                               [--card_only]

`grpovi COMMAND --help` lists a command's arguments.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status.

    Returns:
        0 done, 1 a run failed, `diagnose` found something or `replay` other advantages than the run logged, 2 the
        request was wrong, 130 stopped, 141 the reader of the output went away.
    """
    # Imports stand inside the functions so that `grpovi --help` and `grpovi adjust` do not wait for Lightning.
    from grpovi_lightning.errors import TrainingError, UserError, failed_write
    from grpovi_lightning.paths import expanded_arguments

    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {
        "fit": partial(_run, "fit"),
        "validate": partial(_run, "validate"),
        "test": partial(_run, "test"),
        "task": _task,
        "compare": _compare,
        "report": partial(_report, "report"),
        "power": partial(_report, "power"),
        "diagnose": _diagnose,
        "methods": _methods,
        "sample": partial(_sample, "sample"),
        "teach": partial(_sample, "teach"),
        "relabel": _relabel,
        "replay": _replay,
        "adjust": _adjust,
        "push": _push,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        return _refuse(f"unknown command {name!r}, expected one of {', '.join(commands)}; see grpovi --help")
    try:
        return commands[name](expanded_arguments(rest))
    except UserError as error:
        return _refuse(str(error))
    except TrainingError as error:
        return _refuse(str(error), status=1)
    except Exception as error:
        if (reason := failed_write(error)) is None:
            raise
        return _refuse(f"cannot write: {reason}; make room, then run the same command again", status=1)


def check_fit(arguments: list[str]) -> None:
    """Build a run's module and data without loading or training anything.

    Raises:
        UserError: the configuration is wrong.
    """
    quiet()
    from grpovi_lightning.run import RunCLI

    RunCLI(arguments)


def _run(command: Literal["fit", "validate", "test"], arguments: list[str]) -> int:
    _prepare_to_compute()
    from grpovi_lightning.run import RunCLI

    RunCLI(arguments, training=command == "fit").execute(command)
    return 0


def _task(arguments: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from grpovi_lightning.data.embedded import write_task
    from grpovi_lightning.parser_messages import mistakes_in_one_line
    from grpovi_lightning.paths import check_output, expanded
    from grpovi_lightning.yaml_files import check_config_files

    check_config_files(arguments)
    parser = ArgumentParser(prog="grpovi task", exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(write_task)
    with mistakes_in_one_line():
        settings = parser.parse_args(arguments)
    values = expanded(settings.as_dict())
    values.pop("config", None)
    check_output(values["output"], "output")
    write_task(**values)
    print(f"task written to {values['output']}")
    return 0


def _sample(command: Literal["sample", "teach"], arguments: list[str]) -> int:
    _prepare_to_compute()
    from grpovi_lightning.sampling_command import run

    folder, measured = run(command, arguments)
    if measured is not None:
        from analysis.teaching import print_teaching

        print_teaching(measured, folder)
    print(f"{command}: {folder}")
    return 0


def _relabel(arguments: list[str]) -> int:
    _prepare_to_compute()
    from grpovi_lightning.relabelling_command import run

    folder, counts = run(arguments)
    print(
        f"relabel: {counts['rows']} rows, {counts['swapped']} swapped; left out: {counts['ties']} ties, "
        f"{counts['unscored']} unscored"
    )
    print(f"relabel: {folder}")
    return 0


def _replay(arguments: list[str]) -> int:
    _prepare_to_compute()
    from grpovi_lightning.replaying_command import run

    return run(arguments)


def _compare(arguments: list[str]) -> int:
    from grpovi_lightning.comparison_command import run
    from grpovi_lightning.preflight import check_command, setting_names

    return run(arguments, check_command, setting_names)


def _report(command: Literal["report", "power"], arguments: list[str]) -> int:
    from grpovi_lightning.report_commands import power, report

    (report if command == "report" else power)(arguments)
    return 0


def _diagnose(arguments: list[str]) -> int:
    from grpovi_lightning.report_commands import diagnose

    return diagnose(arguments)


def _methods(arguments: list[str]) -> int:
    from grpovi_lightning.methods_command import show

    show(arguments)
    return 0


def _push(arguments: list[str]) -> int:
    from grpovi_lightning.publishing_command import push

    push(arguments)
    return 0


def _adjust(arguments: list[str]) -> int:
    from grpovi_lightning.one_line_parser import OneLineParser

    parser = OneLineParser(
        prog="grpovi adjust",
        description="Increases the reward variance of each group of a table as GRPOVI does, without training. The "
        "table with a further column `adjusted` goes to standard output as CSV, or to a file; a summary goes to "
        "standard error.",
    )
    parser.add_argument(
        "file",
        type=Path,
        help=".csv or .parquet with the columns group, reward and, unless all completions of a group weigh the same, "
        "log_weight: natural logs, unnormalised, -inf for a weight of zero",
    )
    parser.add_argument(
        "--lower", type=float, required=True, help="lowest possible reward; one such as -1e3 is given as --lower=-1e3"
    )
    parser.add_argument("--upper", type=float, required=True, help="highest possible reward")
    parser.add_argument(
        "--ties",
        choices=["merge", "split"],
        default="merge",
        help="merge (default) keeps equal rewards of a group equal; split is the paper's model, which may give the "
        "earlier row more",
    )
    parser.add_argument("--output", type=Path, default=None, help="a new .csv or .parquet file for the table")
    given = parser.parse_args(arguments)
    from grpovi_lightning.adjust_table import adjust_file, deliver

    content, summary = adjust_file(
        given.file, lower=given.lower, upper=given.upper, ties=given.ties, output=given.output
    )
    status = deliver(content, given.output)
    print(summary, file=sys.stderr)
    return status


def _refuse(message: str, status: int = 2) -> int:
    from grpovi_lightning.errors import without_secrets

    print(f"grpovi: error: {without_secrets(' '.join(message.split()))}", file=sys.stderr)
    return status


def _prepare_to_compute() -> None:
    quiet()
    from grpovi_lightning.allocator import keep_large_blocks
    from grpovi_lightning.notes import quiet_writers, show_notes

    keep_large_blocks()
    show_notes()
    quiet_writers()


if __name__ == "__main__":
    sys.exit(main())
