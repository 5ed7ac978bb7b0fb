"""`grpovi compare`: check everything, prepare once, run arms x seeds, check that they were paired, report."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from grpovi_lightning.errors import UserError
from grpovi_lightning.paths import check_output
from grpovi_lightning.run_record.layout import REPORT_FOLDER, RecordError
from grpovi_lightning.run_record.status import State, read_status
from grpovi_lightning.study.fairness import check_first_rollouts
from grpovi_lightning.study.interruption import Interruption
from grpovi_lightning.study.plan import plan_arms, plan_prepare
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.progress import RunProgress, make_display, states
from grpovi_lightning.study.record import check_folder, locked, write_record
from grpovi_lightning.study.runner import Runner, Settings
from grpovi_lightning.study.specification import Study, load_study

LAUNCHER = (sys.executable, "-m", "grpovi_lightning.cli")
PATIENCE_SECONDS = 30.0


def compare(
    study_file: str | Path,
    *,
    preflight: Callable[[list[str]], None],
    report: Callable[[Path], None],
    seeds: str | Sequence[int] | None = None,
    jobs: int | None = None,
    output: str | Path = "runs",
    launcher: Sequence[str] = LAUNCHER,
    patience: float = PATIENCE_SECONDS,
) -> int:
    """Run a study, or what is left of it, and write its report. Must be called in the main thread.

    Args:
        study_file: path of `study.yaml`.
        preflight: called with the command line of each stage and arm that is to train or to sample, before anything
            runs; raises `UserError` for a configuration that cannot work. What the prepare stages
            make does not exist yet at that time.
        report: called with the study's folder after the last run, also when runs failed.
        seeds: seeds to run instead of the file's. The folder keeps those it already has.
        jobs: how many runs at a time; None: the machine's cores divided by the threads of a run.
        output: the study goes into `<output>/<name>`.
        launcher: program and first arguments in front of each command line.
        patience: seconds that a run has to save and leave after Ctrl-C.

    Returns:
        Exit status: 0 when every run finished and the arms were paired, 1 when not, 130 after Ctrl-C, 143 after
        SIGTERM.

    Raises:
        UserError: when the study cannot run as written; then nothing was written.
    """
    try:
        study = load_study(study_file, seeds=seeds)
        settings = Settings(tuple(launcher), _job_count(jobs, study.threads_per_run), patience)
        folder = Path(output) / study.name
        for run in plan_prepare(study, folder) + plan_arms(study, folder):
            check_output(run.folder, "--output")
        check_output(folder / REPORT_FOLDER, "--output")
        check_folder(folder, study)
        _check_configurations(study, folder, preflight)
        with locked(folder):
            # Checked again: another compare may have made the folder since.
            recorded = check_folder(folder, study)
            write_record(folder, recorded)
            status = _run(study, folder, settings)
            if status is not None:
                return status
            return _conclude(study, recorded, folder, report)
    except RecordError as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        # Outside of `_run`, where signals are counted instead, no process lives.
        _complain("stopped; no run was going on; run the same command again to go on")
        return 130


def _job_count(jobs: int | None, threads: int) -> int:
    if jobs is None:
        # A container or `taskset` may leave fewer cores than the machine has.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // threads)
    if type(jobs) is not int or jobs < 1:
        raise UserError(f"--jobs is {jobs!r}, expected a whole number of at least 1")
    return jobs


def _check_configurations(study: Study, folder: Path, preflight: Callable[[list[str]], None]) -> None:
    groups: dict[tuple[str, str], list[Run]] = {}
    for kind, runs in (("prepare stage", plan_prepare(study, folder)), ("arm", plan_arms(study, folder))):
        for run in runs:
            groups.setdefault((kind, run.owner), []).append(run)
    for (kind, name), runs in groups.items():
        if runs[0].command == "task" or all(_is_finished(run) for run in runs):
            continue
        try:
            preflight(list(runs[0].arguments))
        except UserError as error:
            raise UserError(f"{kind} {name!r}: {error}") from error


def _is_finished(run: Run) -> bool:
    status = read_status(run.folder)
    return status is not None and status.state == State.FINISHED


def _run(study: Study, folder: Path, settings: Settings) -> int | None:
    """Run the prepare stages and the arms; return the exit status when there is nothing to conclude after that."""
    stages = [RunProgress(run) for run in plan_prepare(study, folder)]
    arms = [RunProgress(run) for run in plan_arms(study, folder)]
    runs = stages + arms
    with Interruption() as interruption:
        with make_display(runs, settings.jobs, Console()) as display:
            runner = Runner(settings, display, interruption)
            runner.adopt(runs)
            for stage in stages:
                runner.work([stage], 1)
                if stage.state != State.FINISHED:
                    break
            else:
                runner.work(arms, settings.jobs)
        if interruption.received:
            _complain(f"stopped: {states(runs)}; run the same command again to go on")
            return interruption.exit_status
    for progress in runs:
        if progress.state in (State.FAILED, State.INTERRUPTED):
            _complain(_failure(progress))
    if any(stage.state != State.FINISHED for stage in stages):
        _complain(
            "nothing that needs this stage was started; mend the cause and run the same command again, with another "
            "--output if a YAML file of the study has to change"
        )
        return 1
    return None


def _conclude(study: Study, recorded: Study, folder: Path, report: Callable[[Path], None]) -> int:
    errors, notes = check_first_rollouts(plan_arms(recorded, folder))
    for error in errors:
        _complain(error)
    for note in notes:
        Console().print(note, markup=False, highlight=False, soft_wrap=True)
    unfinished = [run for run in plan_arms(study, folder) if not _is_finished(run)]
    report(folder)
    if unfinished:
        _complain(
            f"{len(unfinished)} of {len(plan_arms(study, folder))} runs did not finish; the same command tries again"
        )
    return 1 if errors or unfinished else 0


def _failure(progress: RunProgress) -> str:
    where = f" at step {progress.step} of {progress.max_steps}" if progress.max_steps else ""
    reason = f": {progress.error}" if progress.error else ""
    return f"{progress.run.label} {progress.state}{where}{reason} (all it said: {progress.run.log})"


def _complain(message: str) -> None:
    print(f"grpovi: error: {message}", file=sys.stderr, flush=True)
