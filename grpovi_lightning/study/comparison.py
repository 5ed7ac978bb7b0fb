"""`grpovi compare`: check everything, prepare once, run arms x seeds, check that they were paired, report."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.choice import Choice, outdated, read_choice, write_choice
from grpovi_lightning.run_record.layout import CHOICE_FILE, RecordError
from grpovi_lightning.run_record.looks import Looks, write_looks
from grpovi_lightning.run_record.status import State
from grpovi_lightning.study.checking import Services, checked, has_failed, is_finished, kept_choice
from grpovi_lightning.study.fairness import check_first_rollouts, check_held_out_rows
from grpovi_lightning.study.forecast import forecast
from grpovi_lightning.study.interruption import Interruption
from grpovi_lightning.study.launchers import Launcher, LocalLauncher, Site
from grpovi_lightning.study.looks import looks_line, looks_of
from grpovi_lightning.study.plan import plan_arms, plan_prepare, plan_tuning
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.progress import RunProgress, make_display, states
from grpovi_lightning.study.record import check_folder, locked, write_record
from grpovi_lightning.study.runner import Runner, Settings
from grpovi_lightning.study.specification import Study

PROGRAM = (sys.executable, "-m", "grpovi_lightning.cli")
PATIENCE_SECONDS = 30.0
_LOCAL = LocalLauncher()


def compare(
    study_file: str | Path,
    services: Services,
    *,
    seeds: str | Sequence[int] | None = None,
    until_decided: int | None = None,
    jobs: int | None = None,
    output: str | Path = "runs",
    launcher: Launcher = _LOCAL,
    program: Sequence[str] = PROGRAM,
    patience: float = PATIENCE_SECONDS,
) -> int:
    """Run a study, or what is left of it, and write its report. Must be called in the main thread.

    With tuning seeds, all points of the grids run on those first. Then the best point of each arm is chosen and
    written down, and what is judged runs on the seeds. A choice that was written stays.

    Args:
        study_file: path of `study.yaml`.
        services: what checks, chooses and reports.
        seeds: seeds to run instead of the file's. The folder keeps those it already has.
        until_decided: add seeds in batches until every verdict claims a difference, and this many at most; judged at
            the looks planned beforehand, each at a level of its own (`run_record.looks`).
        jobs: how many runs at a time; None: as many as the launcher says: here, the machine's cores divided by the
            threads of a run.
        output: the study goes into `<output>/<name>`.
        launcher: starts the runs: here, or on other machines.
        program: a Python and its first arguments, in front of each command line.
        patience: seconds that a run has to save and leave after Ctrl-C.

    Returns:
        Exit status: 0 when every run finished and the arms were paired, 1 when not, 130 after Ctrl-C, 143 after
        SIGTERM.

    Raises:
        UserError: when the study cannot run as written; then nothing was written.
    """
    try:
        study, folder = checked(study_file, services, seeds, output)
        launcher.check(study)
        count = _job_count(jobs, study, until_decided, launcher)
        looks_of(folder, study, until_decided, kept_choice(folder, study))  # refused before the folder is made
        with locked(folder), launcher.opened(Site(folder, tuple(program), patience)) as start:
            settings = Settings(start, count, patience)
            # Checked again: another compare may have made the folder since.
            recorded = check_folder(folder, study)
            choice = kept_choice(folder, study)
            looks = looks_of(folder, study, until_decided, choice)
            write_record(folder, recorded)
            if study.tuning_seeds and choice is None:
                tuned = _tune(study, folder, services, settings)
                if isinstance(tuned, int):
                    return tuned
                choice = tuned
            if looks is not None:
                return _until_decided(study, folder, choice, looks, services, settings)
            status = _run(plan_prepare(study, folder), plan_arms(study, folder, choice), settings)
            if status is not None:
                return status
            return _conclude(study, recorded, folder, choice, services.report)
    except RecordError as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        # Outside of `_run`, where signals are counted instead, no process lives.
        _complain("stopped; no run was going on; run the same command again to go on")
        return 130


def dry_run(
    study_file: str | Path,
    services: Services,
    *,
    seeds: str | Sequence[int] | None = None,
    until_decided: int | None = None,
    jobs: int | None = None,
    output: str | Path = "runs",
    launcher: Launcher = _LOCAL,
) -> list[str]:
    """Check a study as `compare` does, and return what that would run, line by line; nothing is written.

    Raises:
        UserError: when the study cannot run as written.
    """
    try:
        study, folder = checked(study_file, services, seeds, output)
        choice = kept_choice(folder, study)
        looks = looks_of(folder, study, until_decided, choice)
        done = looks is not None and _decided(folder, looks, services)
        launcher.check(study)
        count = _job_count(jobs, study, until_decided, launcher)
        return forecast(study, folder, choice, count, looks, done=done)
    except RecordError as error:
        raise UserError(str(error)) from error


def _until_decided(
    study: Study, folder: Path, choice: Choice | None, looks: Looks, services: Services, settings: Settings
) -> int:
    """Run the seeds of the next look and look, until every verdict is decided or no look is left; then conclude."""
    write_looks(folder, looks)
    _say(looks_line(looks))
    while not _decided(folder, looks, services):
        batch = replace(study, seeds=looks.next_seeds)
        write_record(folder, check_folder(folder, batch))
        runs = plan_arms(batch, folder, choice)
        before = [run for run in runs if has_failed(run)]
        status = _run(plan_prepare(study, folder), runs, settings)
        if status is not None:
            return status
        unfinished = [run for run in runs if not is_finished(run)]
        if any(run not in before for run in unfinished):
            _complain(
                f"the look at {len(batch.seeds)} seeds waits for {len(unfinished)} of {len(runs)} runs; the same "
                "command tries again, and leaves a run out of the look that fails once more"
            )
            return 1
        looks = looks.after([run.folder.relative_to(folder).as_posix() for run in unfinished])
        write_looks(folder, looks)
    judged = replace(study, seeds=looks.seen)
    return _conclude(judged, check_folder(folder, judged), folder, choice, services.report)


def _decided(folder: Path, looks: Looks, services: Services) -> bool:
    """Tell whether nothing is left to be run after the looks made so far, and say how the last one came out."""
    if not looks.made:
        return False
    where = f"look {len(looks.made)} of {len(looks.counts)}, at {len(looks.seen)} seeds"
    questions = services.undecided(folder)
    _say(f"{where}: not decided: {' '.join(questions)}" if questions else f"{where}: every verdict is decided")
    return not questions or looks.over


def _job_count(jobs: int | None, study: Study, until_decided: int | None, launcher: Launcher) -> int:
    if jobs is None:
        seeds = max(len(study.seeds), len(study.tuning_seeds), until_decided or 0)
        return launcher.jobs(study.threads_per_run, seeds * len(study.arms))
    if type(jobs) is not int or jobs < 1:
        raise UserError(f"--jobs is {jobs!r}, expected a whole number of at least 1")
    return jobs


def _tune(study: Study, folder: Path, services: Services, settings: Settings) -> Choice | int:
    """Run all points on the tuning seeds and choose; return the exit status where nothing can be chosen."""
    status = _run(plan_prepare(study, folder), plan_tuning(study, folder), settings)
    return status if status is not None else _choose(study, folder, services) or 1


def _choose(study: Study, folder: Path, services: Services) -> Choice | None:
    """Choose, write the choice down and say it; None, with the report written, where an arm has nothing to choose."""
    try:
        choice = services.choose(folder)
    except RecordError as error:
        services.report(folder)
        _complain(str(error))
        return None
    if (earlier := read_choice(folder)) is not None:
        _say(f"the choice is made anew: {outdated(study, earlier)}")
    write_choice(folder, choice)
    for name, score in choice.scores.items():
        if score.problem is not None:
            _complain(f"{name} cannot be chosen: {score.problem}")
    for name in choice.chosen.values():
        _say(f"chosen on the tuning seeds: {name}, mean {choice.metric} over the run {choice.scores[name].mean:.4g}")
    return choice


def _run(prepare: Sequence[Run], of_arms: Sequence[Run], settings: Settings) -> int | None:
    """Run the prepare stages and runs of arms; return the exit status when there is nothing to conclude after that."""
    stages, arms = [RunProgress(run) for run in prepare], [RunProgress(run) for run in of_arms]
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


def _conclude(
    study: Study, recorded: Study, folder: Path, choice: Choice | None, report: Callable[[Path], None]
) -> int:
    judged = plan_arms(recorded, folder, choice)
    errors, notes = check_first_rollouts(plan_tuning(recorded, folder) + judged)
    errors += check_held_out_rows(judged)
    for error in errors:
        _complain(error)
    for note in notes:
        _say(note)
    tuning, arms = plan_tuning(study, folder), plan_arms(study, folder, choice)
    unfinished, untuned = ([run for run in runs if not is_finished(run)] for runs in (arms, tuning))
    report(folder)
    if unfinished:
        _complain(f"{len(unfinished)} of {len(arms)} runs did not finish; the same command tries again")
    if untuned:
        _complain(
            f"{len(untuned)} of {len(tuning)} tuning runs did not finish; to try them again and choose anew, remove "
            f"{folder / CHOICE_FILE} and run the same command"
        )
    return 1 if errors or unfinished or untuned else 0


def _failure(progress: RunProgress) -> str:
    where = f" at step {progress.step} of {progress.max_steps}" if progress.max_steps else ""
    reason = f": {progress.error}" if progress.error else ""
    return f"{progress.run.label} {progress.state}{where}{reason} (all it said: {progress.run.log})"


def _say(message: str) -> None:
    """Print a line that is no error."""
    Console().print(message, markup=False, highlight=False, soft_wrap=True)


def _complain(message: str) -> None:
    """Print a line as an error."""
    print(f"grpovi: error: {message}", file=sys.stderr, flush=True)
