"""What `grpovi compare` would run, and about how long it would take, from the runs that have finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from grpovi_lightning.run_record.choice import Choice
from grpovi_lightning.run_record.looks import Looks
from grpovi_lightning.run_record.status import State, read_status
from grpovi_lightning.study.looks import looks_line
from grpovi_lightning.study.plan import plan_arms, plan_prepare, plan_tuning
from grpovi_lightning.study.process import Run, usable_checkpoint
from grpovi_lightning.study.progress import duration
from grpovi_lightning.study.specification import Study

DONE, TO_RESUME, TO_DO, LEFT_OUT = "done", "to resume", "to do", "did not finish, not tried again"


@dataclass(frozen=True)
class Prospect:
    """One run, or one that is not known before points are chosen."""

    part: str
    """`prepare`, `tuning` or `judging`; `run` in a study without tuning seeds."""
    arm: str
    """The stage, or the arm in the study file."""
    point: str
    seed: int | None
    state: str
    left: float = 1.0
    """Share of its steps that are still to be made."""
    seconds: float | None = None
    """Seconds that it took, where it is done."""
    sure: bool = True
    """Whether it will run for certain: a point may turn out to be one that runs anyway, a seed not to be needed."""


def forecast(
    study: Study, folder: Path, choice: Choice | None, jobs: int, looks: Looks | None = None, *, done: bool = False
) -> list[str]:
    """Return the runs of a study as lines, then their number, then an estimate of the time that is left.

    Args:
        study: the study to run.
        folder: its output folder, which need not exist.
        choice: the choice that is kept, or None.
        jobs: how many run at a time.
        looks: the looks that seeds are added for, or None.
        done: whether no more seeds are needed after the looks that were made.
    """
    sure = study.seeds
    if looks is not None:
        sure = looks.seen if done else looks.next_seeds
        study = replace(study, seeds=sure if done else looks.seeds)
    tuned = bool(study.tuning_seeds)
    found = [_prospect(run, "prepare") for run in plan_prepare(study, folder)]
    tuning = [_prospect(run, "tuning") for run in plan_tuning(study, folder)]
    # What could not be chosen is not tried again once there is a choice.
    found += [replace(run, state=LEFT_OUT, left=0.0) if choice and run.state != DONE else run for run in tuning]
    found += [_prospect(run, "judging" if tuned else "run") for run in plan_arms(study, folder, choice)]
    if tuned and choice is None:
        found += _after_the_choice(study)
    found = [
        replace(each, state=f"{TO_DO}, unless decided before", sure=False)
        if each.part in ("run", "judging") and each.seed not in sure and each.state.startswith(TO_DO)
        else each
        for each in found
    ]
    rows = [
        (each.part, each.arm, each.point, "" if each.seed is None else f"seed {each.seed}", each.state)
        for each in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, "", *([looks_line(looks)] if looks else []), _numbers(found), *_time(found, jobs)]


def _prospect(run: Run, part: str) -> Prospect:
    arm, point = (run.owner, "") if run.point is None else (run.point.arm, run.point.label)
    status = read_status(run.folder)
    if status is not None and status.state == State.FINISHED:
        return Prospect(part, arm, point, run.seed, DONE, 0.0, status.wall_seconds)
    if status is not None and usable_checkpoint(run.folder):
        done = min(1.0, (status.step or 0) / status.max_steps) if status.max_steps else 0.0
        where = f"{TO_RESUME} from step {status.step} of {status.max_steps}"
        return Prospect(part, arm, point, run.seed, where, 1.0 - done)
    return Prospect(part, arm, point, run.seed, TO_DO)


def _after_the_choice(study: Study) -> list[Prospect]:
    """Return what points that are not chosen yet will run on the seeds that judge."""
    found = []
    arms = {arm.written: arm for arm in study.arms if arm.point is not None}
    for seed in study.seeds:
        for name, arm in arms.items():
            found.append(Prospect("judging", name, "its best point", seed, TO_DO))
            if arm.written_baseline in arms:
                point = f"best point of {arm.written_baseline}"
                found.append(Prospect("judging", name, point, seed, f"{TO_DO}, unless it is its own", sure=False))
    return found


def _numbers(found: Sequence[Prospect]) -> str:
    done = sum(each.state == DONE for each in found)
    unsure = sum(not each.sure for each in found)
    resumed = sum(each.state.startswith(TO_RESUME) for each in found)
    todo = sum(each.state.startswith(TO_DO) for each in found)
    total, left = (f"{n - unsure} to {n}" if unsure else str(n) for n in (len(found), todo))
    return f"{total} runs: {done} {DONE}, {resumed} {TO_RESUME}, {left} {TO_DO}"


def _time(found: Sequence[Prospect], jobs: int) -> list[str]:
    """Estimate from the median of the arm's finished runs, else of the study's; stages are left out."""
    of_arms = [each for each in found if each.part != "prepare"]
    left = [each for each in of_arms if each.left > 0.0]
    stages = [each.arm for each in found if each.part == "prepare" and each.state != DONE]
    if not left and not stages:
        return ["nothing is left to do"]
    finished: dict[str, list[float]] = {}
    for each in of_arms:
        if each.seconds is not None:
            finished.setdefault(each.arm, []).append(each.seconds)
    if not finished:
        return ["time: no finished run to estimate from"]
    every = [seconds for of_arm in finished.values() for seconds in of_arm]
    medians = {each.arm: median(finished.get(each.arm, every)) for each in left}
    lines = [_span(left, medians, jobs)] if left else []
    lines += [f"{arm}: {duration(seconds)} a run" + _source(arm, finished) for arm, seconds in medians.items()]
    return lines + ([f"not in the estimate: the stages {', '.join(stages)}"] if stages else [])


def _span(left: Sequence[Prospect], medians: Mapping[str, float], jobs: int) -> str:
    ends = []
    for counted in ([each for each in left if each.sure], list(left)):
        seconds = [each.left * medians[each.arm] for each in counted]
        ends.append(duration(max(sum(seconds) / jobs, max(seconds, default=0.0))))
    about = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    return f"time: about {about} with {jobs} at a time, from the median of finished runs"


def _source(arm: str, finished: Mapping[str, Sequence[float]]) -> str:
    if arm not in finished:
        return " (none of its own has finished: of all arms)"
    n = len(finished[arm])
    return f" ({n} finished)"
