"""Compares this project with TRL: python benchmarks/against_trl.py --trl-python trl-env/bin/python; see README.md."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from against_trl_runs import OURS, TRL, Run, RunFailed, System, run_once
from against_trl_tables import compare, learning_lines, print_comparisons, print_learning
from reporting import checked_output, consoles, default_output, duration, machine, training_device, write_rows
from step_result import at_least
from workload import InputError
from write_workload import NAMED, write_workload

from grpovi_lightning.errors import UserError

HERE = Path(__file__).parent
WORKLOADS = Path("runs") / "benchmarks" / "workloads"
LEARNING_WORKLOAD = "short"
INSTALLED = """
from importlib.metadata import version
print(*(f"{package} {version(package)}" for package in ("trl", "torch", "transformers")), sep=", ")
"""


def trl_system(python: Path) -> tuple[System, str]:
    """TRL's side, and the versions of its packages.

    Raises:
        UserError: `python` does not run, or has no TRL.
    """
    interpreter = os.path.abspath(python.expanduser())  # not resolved: the link is what makes it a virtual environment
    try:
        found = subprocess.run([interpreter, "-c", INSTALLED], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--trl-python: got {python}, which does not run: {error.strerror}") from None
    if found.returncode:
        raise UserError(f"--trl-python: got {python}, where TRL is not installed; benchmarks/README.md says how")
    return System(TRL, interpreter, str(HERE / "trl_step.py")), found.stdout.strip()


def run_times(arguments: argparse.Namespace, systems: Sequence[System], say: Callable[[str], None]) -> list[Run]:
    """Every workload with both systems in turn, once a round."""
    runs: list[Run] = []
    for number in range(1, arguments.rounds + 1):
        for name in arguments.workloads:
            for system in systems:
                run = run_once(system, WORKLOADS / name, number, arguments.seed, arguments.steps, arguments.threads)
                say(f"round {number}, {name}, {system.name}: {duration(run.median_step_seconds)} a step")
                runs.append(run)
    return runs


def run_seeds(arguments: argparse.Namespace, systems: Sequence[System], say: Callable[[str], None]) -> list[Run]:
    """The short workload with both systems in turn, once a seed."""
    runs: list[Run] = []
    for seed in range(arguments.seed, arguments.seed + arguments.learning):
        for system in systems:
            run = run_once(system, WORKLOADS / LEARNING_WORKLOAD, 1, seed, arguments.steps, arguments.threads)
            say(f"seed {seed}, {system.name}: kl {run.kl_last:.4g}, reward {run.reward_last:.4g}")
            runs.append(run)
    return runs


def compare_systems(arguments: argparse.Namespace) -> None:
    """Runs both, prints the table and writes the CSV."""
    out, progress = consoles()
    output = checked_output(arguments.output or default_output("against_trl", ".csv"), "table", ",".join(Run._fields))
    trl, installed = trl_system(arguments.trl_python)
    decoder = f"--decoder={arguments.decoder}"
    systems = (trl, System(OURS, sys.executable, str(HERE / "training_step.py"), (decoder,)))
    for name in [LEARNING_WORKLOAD] if arguments.learning else arguments.workloads:
        progress.print(write_workload(WORKLOADS / name, NAMED[name]))

    out.print(machine(arguments.threads), f"TRL's Python: {installed}", sep="\n")
    out.print(f"trained on: {training_device()}; our decoder: {arguments.decoder}")
    if arguments.learning:
        runs = run_seeds(arguments, systems, progress.print)
        print_learning(out, learning_lines(runs), arguments.steps)
    else:
        runs = run_times(arguments, systems, progress.print)
        print_comparisons(out, compare(runs), arguments.rounds, arguments.steps)
    out.print(write_rows(output, Run._fields, runs))


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 where a run failed; 2 for arguments or files that do not do."""
    parser = argparse.ArgumentParser(description="Compares this project's training steps with TRL's.")
    parser.add_argument("--trl-python", type=Path, required=True, metavar="PATH", help="a Python that has TRL")
    parser.add_argument("--workloads", nargs="+", choices=NAMED, default=list(NAMED), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each on each workload (default: 3)")
    parser.add_argument("--steps", type=int, default=12, help="training steps of a run (default: 12)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs; of the first with --learning")
    parser.add_argument("--learning", type=int, metavar="N", help="compare what N seeds learn instead of the times")
    parser.add_argument("--decoder", choices=("compiled", "group"), default="compiled", help="ours (default: compiled)")
    parser.add_argument("--output", type=Path, help="the CSV; default runs/benchmarks/against_trl_<date>_<time>.csv")
    arguments = parser.parse_args(argv)
    try:
        at_least(arguments, rounds=1, steps=2, threads=1, seed=0, learning=2)
        compare_systems(arguments)
    except (InputError, RunFailed, UserError, OSError) as error:
        print(f"against_trl.py: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
