"""`grpovi compare --until-decided MAX`: the looks planned in a study's folder, and what must not have happened."""

from dataclasses import replace
from pathlib import Path

from grpovi_lightning.errors import UserError
from grpovi_lightning.run_record.choice import Choice
from grpovi_lightning.run_record.layout import REPORT_FOLDER
from grpovi_lightning.run_record.looks import Looks, plan_looks, read_looks
from grpovi_lightning.run_record.study import MAX_SEED
from grpovi_lightning.study.checking import is_finished
from grpovi_lightning.study.plan import plan_arms
from grpovi_lightning.study.record import check_folder
from grpovi_lightning.study.specification import Study


def looks_of(folder: Path, study: Study, most: int | None, choice: Choice | None) -> Looks | None:
    """Return the looks of a study's folder as they were planned, or plan them; None for a fixed number of seeds.

    The seeds after the study's own are the integers that follow the largest of them.

    Args:
        folder: the study's output folder, which need not exist.
        study: the study to run now; its seeds are those of the first look.
        most: seeds at which to stop in any case; None where seeds are not to be added.
        choice: the choice of points that is kept, or None.

    Raises:
        UserError: when `most` cannot be, or the folder was looked at in another way.
        RecordError: when looks.json cannot be used.
    """
    recorded = read_looks(folder)
    if most is None:
        if recorded is not None:
            raise UserError(
                f"{folder} is judged at planned looks only; give --until-decided {len(recorded.seeds)} again, or "
                "--output another folder"
            )
        return None
    looks = _planned(study, most)
    if recorded is None:
        _check_unseen(folder, replace(study, seeds=looks.seeds), choice)
        return looks
    if recorded.seeds != looks.seeds or recorded.counts[0] != looks.counts[0]:
        raise UserError(
            f"{folder}: its looks were planned for {recorded.counts[0]} to {len(recorded.seeds)} seeds, beginning with "
            f"seed {recorded.seeds[0]}, and are asked for {looks.counts[0]} to {most} now, beginning with seed "
            f"{looks.seeds[0]}; looks cannot change once planned: ask for the same, or give --output another folder"
        )
    if recorded.made and study.tuning_seeds and choice is None:
        raise UserError(
            f"{folder}: points would be chosen anew, after a look at the seeds that judge them; restore the choice, or "
            "give --output another folder"
        )
    return recorded


def _planned(study: Study, most: int) -> Looks:
    n = len(study.seeds)
    if type(most) is not int or most < n:
        raise UserError(f"--until-decided is {most!r}, and the study has {n} seeds to begin with; give at least {n}")
    if all(arm.baseline is None for arm in study.arms) and not study.report.get("contrasts"):
        raise UserError("--until-decided: no arm has a baseline and there are no contrasts, so no verdict to decide")
    first = max(study.seeds) + 1
    following = range(first, first + most - n)
    if following and following[-1] > MAX_SEED:
        raise UserError(
            f"--until-decided {most}: the {len(following)} seeds after {first - 1} would pass {MAX_SEED}, the largest "
            "there is; give --seeds smaller ones"
        )
    if both := sorted(set(following) & set(study.tuning_seeds)):
        raise UserError(
            f"--until-decided {most} would add the seeds {first} to {following[-1]}, and {both[0]} is a tuning seed; "
            "choose tuning seeds or --seeds so that the integers after the largest seed are free"
        )
    return plan_looks((*study.seeds, *following), n)


def _check_unseen(folder: Path, study: Study, choice: Choice | None) -> None:
    """Refuse seeds that an earlier report has judged: that was a look at the whole level, which none is left of."""
    check_folder(folder, study)
    if not (folder / REPORT_FOLDER).is_dir():
        return
    judged = [run.seed for run in plan_arms(study, folder, choice) if is_finished(run)]
    if judged:
        raise UserError(
            f"{folder}: a report has judged seed {judged[0]} already, at the whole level of 5 %, so nothing is left "
            "for further looks; give --seeds others, which are then judged alone, or --output another folder"
        )


def looks_line(looks: Looks) -> str:
    """Say in one line which looks are planned, with which seeds, and how many were made."""
    added = looks.seeds[looks.counts[0] :]
    seeds = f"; seeds {added[0]} to {added[-1]} are added if needed" if added else ""
    counts = ", ".join(map(str, looks.counts))
    return f"looks at {counts} seeds, {len(looks.made)} of {len(looks.counts)} made{seeds}"
