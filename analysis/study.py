"""Everything a report says about one folder, computed once and written by `report` and `terminal`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.curves import Curve, beside, curves_of
from analysis.diagnostics import PairAccuracy, pair_accuracy
from analysis.efficiency import Comparison, compare
from analysis.equal_cost import EqualCost, at_equal_cost
from analysis.loading import load_study
from analysis.online import OnlineArm, online_arms
from analysis.reward_kl import EqualKL, at_equal_kl
from analysis.selection import included, with_planned_runs, with_reasons
from analysis.settings import Settings, read_settings
from analysis.several_tasks import TasksComparison, tasks_of
from analysis.tables import rows_where
from analysis.tuned import TunedComparison, tuned_of
from analysis.tuning import Sensitivity, sensitivity_of
from analysis.verdict import Verdict, verdicts_of
from grpovi_lightning import metric_keys


@dataclass(frozen=True)
class Analysis:
    """The results for one folder.

    Attributes:
        all_runs: Rows of all runs, also of those that do not count.
        runs: Rows of the runs that count.
        status: One row a run, with the `reason` where it does not count.
        curves: The compared metric: arm -> seed -> curve.
        comparisons: One an arm, in order.
        paired: The comparisons that have a verdict.
        verdicts: One each of `paired`: of the arms that have a baseline, in order; then of the contrasts.
        equal_kl: The comparisons at equal KL, in the order of the verdicts, where there are any.
        equal_cost: The comparisons at equal tokens and seconds, likewise.
        pair_accuracy: Of the reward model, where the settings name its run.
        online: One an arm, in order, where a reward model learned during training; else empty.
        sensitivity: The points of grids, where arms have `values`.
        tuned: Each arm at its own best point, where points were chosen on tuning seeds.
        tasks: Methods over several tasks, where arms have a `task`.
        tuning: One row a run that judges nothing: of tuning seeds, and of points that were not chosen.
        logged: Whether any run has a scalar.
    """

    path: Path
    settings: Settings
    all_runs: pd.DataFrame
    runs: pd.DataFrame
    status: pd.DataFrame
    curves: Mapping[str, Mapping[int, Curve]]
    comparisons: list[Comparison]
    paired: list[Comparison]
    verdicts: list[Verdict]
    equal_kl: list[EqualKL]
    equal_cost: list[EqualCost]
    pair_accuracy: PairAccuracy | None
    online: list[OnlineArm]
    sensitivity: Sensitivity | None
    tuned: TunedComparison | None
    tasks: TasksComparison | None
    tuning: pd.DataFrame
    logged: bool

    @property
    def arms(self) -> list[str]:
        """Names of all arms, in order."""
        return [comparison.arm for comparison in self.comparisons]

    @property
    def counted(self) -> pd.DataFrame:
        """The rows of `status` of the runs that count."""
        return rows_where(self.status, self.status["reason"].isna())

    @property
    def n_tested(self) -> int:
        """Differences that the verdicts were corrected for."""
        return self.verdicts[0].n_tested if self.verdicts else 0


def analyse(
    study_dir: str | Path,
    *,
    metric: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> Analysis:
    """Load a study and compute everything its report says; see `write_report` for the arguments and errors."""
    path = Path(study_dir)
    all_runs, every_status = load_study(path)
    settings = read_settings(path, all_runs, every_status, metric=metric, baseline=baseline, target=target)
    status = with_reasons(with_planned_runs(every_status, settings), all_runs, settings.metric)
    sensitivity = sensitivity_of(all_runs, every_status, settings)
    tuned = None
    if settings.choice is not None and sensitivity is not None:
        tuned = tuned_of(all_runs, status, settings, sensitivity)
    comparisons = compare(all_runs, status, settings)
    runs = included(all_runs, status)
    curves = curves_of(runs, settings.metric)
    kl = curves_of(runs, beside(settings.metric, metric_keys.KL))
    contrasts = compare(all_runs, status, settings, settings.contrasts)
    paired = [each for each in comparisons + contrasts if each.baseline is not None]
    equal_kl = {
        (each.arm, each.baseline): at_equal_kl(
            each.arm, str(each.baseline), each.paired_seeds, curves, kl, settings.level
        )
        for each in paired
    }
    names = {"tokens": metric_keys.NUM_TOKENS, "seconds": metric_keys.TRAIN_SECONDS}
    costs = {name: curves_of(runs, beside(settings.metric, key)) for name, key in names.items()}
    return Analysis(
        path=path,
        settings=settings,
        all_runs=all_runs,
        runs=runs,
        status=status,
        curves=curves,
        comparisons=comparisons,
        paired=paired,
        verdicts=verdicts_of([(each, equal_kl[each.arm, each.baseline]) for each in paired]),
        equal_kl=[equal for equal in equal_kl.values() if equal is not None],
        equal_cost=at_equal_cost(
            [(each.arm, str(each.baseline), each.paired_seeds) for each in paired], curves, costs, settings.level
        ),
        pair_accuracy=None if settings.pair_accuracy is None else pair_accuracy(path, settings.pair_accuracy),
        online=online_arms(runs, settings.metric, comparisons, settings.level),
        sensitivity=sensitivity,
        tuned=tuned,
        tasks=tasks_of(all_runs, status, settings),
        tuning=with_reasons(
            rows_where(every_status, ~every_status["run"].isin(status["run"])), all_runs, settings.metric
        ),
        logged=not all_runs.empty,
    )
