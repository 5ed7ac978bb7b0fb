"""What is wrong with the runs of a folder: a DataFrame, and the table of the report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import ReportError
from analysis.loading import load_study
from analysis.run_log import read_scalars
from analysis.tables import groups, rows_where
from grpovi_lightning import diagnoses, metric_keys
from grpovi_lightning.diagnoses import Finding, Series, is_read, kept_checkpoint, logged, not_judged
from grpovi_lightning.diagnoses.logged import components

COLUMNS = (
    *("arm", "seed", "run", "kind", "step", "value", "evidence", "threshold", "source", "remedy"),
    *("best_step", "checkpoint"),
)


@dataclass(frozen=True)
class Diagnosed:
    """One run, and what was found.

    Attributes:
        folder: the run's.
        run: its place below what was asked for.
        arm: name of the arm.
        seed: None where it is not known.
        findings: in the order of the rules.
        not_judged: kind -> the scalars that were missing for it.
        problem: why nothing could be judged, or None.
        updates: optimiser steps in a training step, as far as is known.
    """

    folder: Path
    run: str
    arm: str
    seed: int | None
    findings: tuple[Finding, ...] = ()
    not_judged: tuple[tuple[str, tuple[str, ...]], ...] = ()
    problem: str | None = None
    updates: int = 1

    def checkpoint(self, finding: Finding) -> Path | None:
        """Return the checkpoint of the best evaluation, where the finding names one and the run keeps it."""
        step = finding.evidence.best_step
        return None if step is None else kept_checkpoint(self.folder, step, self.updates)

    def way_back(self, finding: Finding) -> str:
        """Say where the best evaluation's checkpoint lies; "" where the finding names no evaluation."""
        step = finding.evidence.best_step
        if step is None:
            return ""
        kept = self.checkpoint(finding)
        where = f"its checkpoint is {kept}" if kept else "no checkpoint of it is kept (`save_top_k: -1` keeps all)"
        return f"The best evaluation was at step {step}; {where}."


def diagnose(path: str | Path, *, gold: str | None = None) -> pd.DataFrame:
    """Diagnose every run below `path` by the rules of `grpovi_lightning.diagnoses`.

    Args:
        path: A study, a folder of runs, or one run, of this package or of TRL.
        gold: The reward component that judges the reward. Default: those that the runs only observed; in runs of TRL
            the one named "gold".

    Returns:
        One row a finding: `arm`, `seed`, `run`, `kind`, `step` (where it was seen last), `value` (what was beyond the
        threshold), `evidence`, `threshold`, `source`, `remedy`, `best_step` and `checkpoint` (of the best evaluation,
        where the remedy is to go back to it). `attrs["problems"]` maps the runs that could not be judged to the reason.

    Raises:
        ReportError: `path` is no folder, or there is no run in it.
    """
    found = diagnosed(path, gold=gold)
    rows = [
        (
            *(each.arm, each.seed, each.run, finding.kind, finding.evidence.step, finding.evidence.value),
            *(finding.evidence.text, finding.threshold, finding.source, finding.remedy),
            *(finding.evidence.best_step, str(kept) if (kept := each.checkpoint(finding)) else None),
        )
        for each in found
        for finding in each.findings
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "step": "int64", "best_step": "Int64"})
    table.attrs["problems"] = {each.run: each.problem for each in found if each.problem}
    return table


def diagnosed(path: str | Path, *, gold: str | None = None) -> list[Diagnosed]:
    """Load the runs below `path` and diagnose each; see `diagnose`."""
    return diagnose_runs(*load_study(path), Path(path), gold=gold)


def diagnose_runs(runs: pd.DataFrame, status: pd.DataFrame, root: Path, *, gold: str | None = None) -> list[Diagnosed]:
    """Diagnose runs that have been loaded.

    Args:
        runs: As from `load_runs`.
        status: As from `load_status`; one result a row, in its order.
        root: What both were loaded from.
        gold: As for `diagnose`.

    Raises:
        ReportError: No run logged the gold reward.
    """
    tags = runs["metric"].unique()
    if gold is not None and len(tags) and not any(tag.endswith(metric_keys.rewards_mean(gold)) for tag in tags):
        names = components(map(str, tags))
        raise ReportError(f"--gold: got {gold!r}, expected a reward that the runs logged: {', '.join(names) or 'none'}")
    read = [tag for tag in tags if is_read(tag)]
    logs = {run: rows for (run,), rows in groups(rows_where(runs, runs["metric"].isin(read)), "run")}
    return [_judge(row, logs.get(row["run"]), root, gold) for row in status.to_dict("records")]


def _judge(row: dict[Any, Any], log: pd.DataFrame | None, root: Path, gold: str | None) -> Diagnosed:
    seed = None if pd.isna(row["seed"]) else int(row["seed"])
    one = Diagnosed(root / row["run"], row["run"], row["arm"], seed)
    if log is None:
        damage = read_scalars(one.folder).damage  # a folder without status.json, such as TRL's, has that as its problem
        reason = f"damaged log file {damage}" if damage else row["problem"] or "it logged nothing that a rule reads"
        return replace(one, problem=reason)
    series = {str(tag): Series.of(rows["step"], rows["value"]) for (tag,), rows in groups(log, "metric")}
    run = logged(series, row["adjusts"], None if gold is None else [gold])
    return replace(
        one,
        findings=tuple(diagnoses.diagnose(run)),
        not_judged=tuple(not_judged(run).items()),
        updates=_updates(row["step"], run.get(metric_keys.REWARD)),
    )


def _updates(optimizer_steps: Any, training: Series | None) -> int:
    """Return how many optimiser steps a step had: checkpoints are named after the former, scalars count the latter."""
    if pd.isna(optimizer_steps) or training is None:
        return 1
    steps, rest = divmod(int(optimizer_steps), int(training.steps[-1]) + 1)
    return 1 if rest else max(1, steps)


@dataclass(frozen=True)
class ArmFinding:
    """One diagnosis of one arm: a row of the report's table.

    Attributes:
        arm: name of the arm.
        kind: the diagnosis.
        n_runs: runs of the arm that were judged.
        threshold: what the findings were held against, and where that comes from.
        remedy: what to do.
        cases: (seed, or the run where that is not known; evidence; the way back), one a run with the finding.
    """

    arm: str
    kind: str
    n_runs: int
    threshold: str
    remedy: str
    cases: tuple[tuple[str, str, str], ...]


def by_arm(found: Sequence[Diagnosed]) -> list[ArmFinding]:
    """Gather findings by arm, in the order of the runs, and within an arm in that of the rules."""
    rows = []
    for arm in dict.fromkeys(each.arm for each in found):
        own = [each for each in found if each.arm == arm and each.problem is None]
        for kind in (rule.kind for rule in diagnoses.RULES):
            cases = [(each, finding) for each in own for finding in each.findings if finding.kind == kind]
            if cases:
                finding = cases[0][1]
                told = tuple(
                    (each.run if each.seed is None else f"seed {each.seed}", case.evidence.text, each.way_back(case))
                    for each, case in cases
                )
                threshold = f"{finding.threshold} ({finding.source})"
                rows.append(ArmFinding(arm, kind, len(own), threshold, finding.remedy, told))
    return rows


def lacking(found: Sequence[Diagnosed]) -> list[tuple[str, str, int]]:
    """Return what was not judged: the kind, the scalars that were missing, and in how many of the judged runs."""
    told = [(kind, ", ".join(tags)) for each in found for kind, tags in each.not_judged]
    return [(*one, told.count(one)) for one in dict.fromkeys(told)]


def told_live(warning: str, run: str, found: Sequence[Diagnosed]) -> bool:
    """Return whether a warning of a run's record is one of these findings, told while the run was under way."""
    kinds = [finding.kind for each in found if each.run == run for finding in each.findings]
    return warning.partition(":")[0] in kinds
