"""Every check of a study that comes before its first process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpovi_lightning.errors import UserError
from grpovi_lightning.paths import check_output
from grpovi_lightning.run_record.checking import close_matches
from grpovi_lightning.run_record.choice import Choice, outdated, read_choice
from grpovi_lightning.run_record.layout import REPORT_FOLDER
from grpovi_lightning.run_record.status import State, read_status
from grpovi_lightning.study.plan import plan_arms, plan_prepare, plan_tuning
from grpovi_lightning.study.process import Run
from grpovi_lightning.study.record import check_folder
from grpovi_lightning.study.specification import Study, load_study


@dataclass(frozen=True)
class Services:
    """What a study asks of the rest of the package, which it does not import."""

    preflight: Callable[[list[str]], None]
    """Called with the command line of each stage and arm that is to train or to sample, before anything runs; raises
    `UserError` for a configuration that cannot work. What the prepare stages make does not exist yet at that time."""
    settings: Callable[[list[str]], Sequence[str]]
    """Called with a command line as above; returns the dotted names of all settings that it resolves to."""
    choose: Callable[[Path], Choice]
    """Called with the study's folder when the tuning runs are over; raises `RecordError` where an arm has no point that
    can be chosen."""
    undecided: Callable[[Path], Sequence[str]]
    """Called with the study's folder after a look; returns the questions on which its report would claim nothing."""
    report: Callable[[Path], None]
    """Called with the study's folder after the last run, also when runs failed."""


def checked(
    study_file: str | Path, services: Services, seeds: str | Sequence[int] | None, output: str | Path
) -> tuple[Study, Path]:
    """Return the study and its folder, after every check that comes before the first process."""
    study = load_study(study_file, seeds=seeds)
    folder = Path(output) / study.name
    choice = kept_choice(folder, study)
    tuning = plan_tuning(study, folder) if choice is None else []
    stages, arms = plan_prepare(study, folder), tuning + plan_arms(study, folder, choice)
    for run in stages + arms:
        check_output(run.folder, "--output")
        if not run.folder.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{run.folder} is or goes through a link to {run.folder.resolve()}, expected a folder in {folder}; "
                "remove the link, or give --output another folder"
            )
    check_output(folder / REPORT_FOLDER, "--output")
    check_folder(folder, study)
    for kind, runs in (("prepare stage", stages), ("arm", arms)):
        owners: dict[str, list[Run]] = {}
        for run in runs:
            owners.setdefault(run.owner, []).append(run)
        for name, owned in owners.items():
            if owned[0].command != "task" and not all(is_finished(run) for run in owned):
                _check_configuration(f"{kind} {name!r}", owned[0], services)
    return study, folder


def _check_configuration(name: str, run: Run, services: Services) -> None:
    try:
        services.preflight(list(run.arguments))
    except UserError as error:
        if run.point is not None:
            _check_keys(run, services)
        raise UserError(f"{name}: {error}") from error


def _check_keys(run: Run, services: Services) -> None:
    """Name the key of a point that its configuration has not; without the values it may lack what they give."""
    assert run.point is not None
    given = run.point.arguments
    start = run.arguments.index(given[0])
    try:
        known = services.settings([*run.arguments[:start], *run.arguments[start + len(given) :]])
    except UserError:
        return
    for key in run.point.values:
        if key not in known:
            raise UserError(f"arm {run.point.arm!r}: values: its configuration has no {key}{close_matches(key, known)}")


def kept_choice(folder: Path, study: Study) -> Choice | None:
    """Return the choice that the study's folder holds, if it is one between the study's points on its tuning seeds."""
    choice = read_choice(folder) if study.tuning_seeds else None
    return None if choice is None or outdated(study, choice) else choice


def is_finished(run: Run) -> bool:
    """Tell whether the run says that it is finished."""
    status = read_status(run.folder)
    return status is not None and status.state == State.FINISHED


def has_failed(run: Run) -> bool:
    """Tell whether the run says that it failed."""
    status = read_status(run.folder)
    return status is not None and status.state == State.FAILED
