"""Which runs count, and for every other one the reason why not."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.loading import status_table
from analysis.settings import Settings
from analysis.tables import groups, rows_where
from grpovi_lightning.run_record.layout import STUDY_FILE, run_folder
from grpovi_lightning.run_record.looks import Looks


def status_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Make a status table for runs whose status.json is not at hand: one row a run, no problem known."""
    return status_table(runs.loc[:, ["arm", "seed", "run"]].drop_duplicates().to_dict("records"))


def with_planned_runs(status: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Return the runs that are compared, with a row for every one that study.yaml plans and that is not there.

    Runs that chose a point on tuning seeds judge nothing and are left out; `runs_of_grid` has them.
    """
    if settings.choice is not None:
        judged, tuning = set(settings.arms), settings.grid_seeds
        points = status["arm"].isin(list(settings.points))
        status = rows_where(status, ~points | (status["arm"].isin(list(judged)) & ~status["seed"].isin(tuning)))
    return _of_the_look(_with_missing(status, settings.planned), settings.looks)


def _of_the_look(status: pd.DataFrame, looks: Looks | None) -> pd.DataFrame:
    """Give a problem to the runs that the last look had not: with them a report would be a look of its own."""
    if looks is None:
        return status
    problems = [
        problem if isinstance(problem, str) else _not_seen(arm, seed, looks)
        for arm, seed, problem in zip(status["arm"], status["seed"], status["problem"], strict=True)
    ]
    return status.assign(problem=pd.Series(problems, index=status.index, dtype="object"))


def _not_seen(arm: str, seed: int, looks: Looks) -> str | None:
    if pd.isna(seed) or seed not in looks.seeds:
        return "no look was planned with its seed"
    if seed not in looks.seen:
        return "was not needed" if looks.over else f"waits for the look at {len(looks.next_seeds)} seeds"
    late = run_folder(arm, seed) in looks.missing
    return f"had not finished at the look at {len(looks.seen)} seeds" if late else None


def runs_of_grid(status: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Return the runs of all points on the seeds that every point runs on, with a row for every missing one."""
    wanted = status["arm"].isin(list(settings.points)) & status["seed"].isin(settings.grid_seeds)
    return _with_missing(rows_where(status, wanted), dict.fromkeys(settings.points, settings.grid_seeds))


def _with_missing(status: pd.DataFrame, planned: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    present = {(str(arm), seed) for arm, seed in zip(status["arm"], status["seed"], strict=True) if not pd.isna(seed)}
    missing = [(arm, seed) for arm, seeds in planned.items() for seed in seeds if (arm, seed) not in present]
    if not missing:
        return status.reset_index(drop=True)
    rows = [
        {"arm": arm, "seed": seed, "run": run_folder(arm, seed), "state": "missing"}
        | {"problem": f"planned in {STUDY_FILE}, but there is no such run"}
        for arm, seed in missing
    ]
    return pd.concat([status, status_table(rows)], ignore_index=True)


def with_reasons(status: pd.DataFrame, runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Add the column `reason`: why the run does not count for `metric`, or None where it does.

    Args:
        status: As from `load_status`.
        runs: As from `load_runs`.
        metric: The tag that is compared.

    Returns:
        A copy of `status` with `reason`. Runs that did not finish, are damaged, did not log the metric at least
        twice, or logged a value that is not finite do not count.
    """
    by_run = {str(run): group for (run,), group in groups(rows_where(runs, runs["metric"] == metric), "run")}
    reasons = [
        problem if isinstance(problem, str) else _metric_reason(by_run.get(run), metric)
        for run, problem in zip(status["run"], status["problem"], strict=True)
    ]
    return status.assign(reason=pd.Series(reasons, index=status.index, dtype="object"))


def _metric_reason(rows: pd.DataFrame | None, metric: str) -> str | None:
    if rows is None:
        return f"did not log {metric}"
    measured = sorted(zip(rows["step"], rows["value"], strict=True))
    for step, value in measured:
        if not math.isfinite(value):
            return f"{metric} is {value} at step {step}"
    if len(measured) < 2:
        return f"logged {metric} at step {measured[0][0]} only; a curve takes two"
    return None


def included(runs: pd.DataFrame, status: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `runs` that belong to runs without a `reason` in `status`."""
    counted = [run for run, reason in zip(status["run"], status["reason"], strict=True) if reason is None]
    return rows_where(runs, runs["run"].isin(counted))
