"""How soon an arm reaches a target, and how it compares with its baseline on the same seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.curves import Curve, Curves, beside, common_span, curves_of
from analysis.errors import ReportError
from analysis.loading import load_status
from analysis.pairing import Pairing, pairing_of
from analysis.selection import included, status_of, with_planned_runs, with_reasons
from analysis.settings import Settings, read_settings
from analysis.speedup import Speedup, speedup_of
from analysis.statistics import Estimate, estimate_mean, estimate_median
from grpovi_lightning import metric_keys

COLUMNS = [
    *("arm", "baseline", "metric", "n_seeds", "n_excluded", "target", "n_reached"),
    *("steps_to_target", "steps_low", "steps_high", "tokens_to_target", "seconds_to_target"),
    *("speedup", "speedup_low", "speedup_high", "final", "final_low", "final_high", "auc", "auc_low", "auc_high"),
    *("paired_diff", "paired_low", "paired_high", "variance_ratio"),
]


@dataclass(frozen=True)
class Target:
    """The value to reach, in units of the metric.

    Attributes:
        value: baseline's mean first value + fraction * (mean final - mean first); NaN where the baseline did not rise.
        first: Mean over the baseline's seeds of the first value.
        final: Mean over the baseline's seeds of the final value (see `Curve.final`).
        explicit: Whether `value` was given instead.
        rise: `final - first` over the baseline's seeds.
    """

    value: float
    first: float
    final: float
    explicit: bool
    rise: Estimate


@dataclass(frozen=True)
class Comparison:
    """One arm, with its baseline or (`baseline` None) alone.

    Attributes:
        baseline: The arm it is compared with, or None.
        metric: The tag; higher is better.
        seeds: Seeds of the arm that count.
        n_excluded: Runs of the arm that do not count.
        baseline_excluded: Runs of the baseline that do not count; 0 where there is none.
        paired_seeds: Seeds that count in both arms.
        target: The baseline's target; for an arm that stands alone its own.
        span: Step range (first, last) that all runs of the pair cover; areas are taken over it.
        steps: Median over seeds of the steps to the target; inf for a seed that did not reach it.
        tokens: The same in completion tokens sampled for training; NaN where they were not logged.
        seconds: The same in seconds of training.
        run_tokens: Mean over seeds of the tokens of a whole run; NaN where a seed did not log them.
        run_seconds: The same in seconds of training.
        n_reached: Seeds of the arm that reached the target.
        speedup: Baseline's steps / arm's steps.
        final: Mean over seeds of the final value.
        auc: Mean over seeds of the mean height of the curve over `span`.
        paired: Mean over paired seeds of (arm's auc - baseline's auc).
        last_steps: Distinct last steps of the runs of the pair; more than one means that they are not equally long.
        pairing: What pairing by seed did to the variance of the difference in area; None where that cannot be known.
    """

    arm: str
    baseline: str | None
    metric: str
    seeds: tuple[int, ...]
    n_excluded: int
    baseline_excluded: int
    paired_seeds: tuple[int, ...]
    target: Target
    span: tuple[float, float]
    steps: Estimate
    tokens: float
    seconds: float
    run_tokens: float
    run_seconds: float
    n_reached: int
    speedup: Speedup
    final: Estimate
    auc: Estimate
    paired: Estimate
    last_steps: tuple[float, ...] = ()
    pairing: Pairing | None = None

    def row(self) -> dict[str, object]:
        """Return the row of the efficiency table; what is infinite or undefined is NaN."""
        numbers = {"target": self.target.value, "n_reached": self.n_reached}
        numbers |= {"tokens_to_target": self.tokens, "seconds_to_target": self.seconds}
        for name, ends, estimate in (
            ("steps_to_target", "steps", self.steps),
            ("speedup", "speedup", self.speedup.estimate),
            ("final", "final", self.final),
            ("auc", "auc", self.auc),
            ("paired_diff", "paired", self.paired),
        ):
            numbers |= {name: estimate.point, f"{ends}_low": estimate.low, f"{ends}_high": estimate.high}
        numbers = {name: value if math.isfinite(value) else math.nan for name, value in numbers.items()}
        numbers["variance_ratio"] = math.nan if self.pairing is None else self.pairing.ratio
        names = {"arm": self.arm, "baseline": self.baseline or "", "metric": self.metric}
        return {**names, "n_seeds": len(self.seeds), "n_excluded": self.n_excluded, **numbers}


def efficiency_table(
    runs: pd.DataFrame,
    *,
    metric: str | None = None,
    baselines: Mapping[str, str] | None = None,
    target_fraction: float | None = None,
    target: float | None = None,
    status: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Tabulate for each arm: steps, tokens and seconds to a target, final value, area, and paired differences.

    - **target**: the baseline's mean first value + `target_fraction` * (its mean final value - mean first value), over
      all its seeds that count; one target for a baseline and the arms compared with it. NaN where it did not rise.
    - **steps_to_target**: per seed the first crossing of the curve, linear between evaluations; then the median over
      seeds, where a seed that never crosses counts as infinite. Empty where the median is infinite. Tokens and seconds
      are read off the run's own cost curve at the crossing.
    - **speedup**: baseline's steps / arm's steps on the same seed, geometric mean over seeds. NaN as soon as one of the
      paired seeds did not reach the target, since leaving that seed out would favour the arm that failed on it.
    - **final**: per seed the mean of the last 3 evaluations (never the first one); then the mean over seeds.
    - **auc**: per seed the trapezoid area over the step range that all runs of the pair cover, divided by that range.
    - **paired_diff**: mean over seeds present in both arms of (arm's auc - baseline's auc).
    - **variance_ratio**: variance of the paired differences / that of differences between runs with seeds of their own,
      which is the sum of the variances of the two arms. Below 1 the pairing helped; NaN for fewer than three seeds.
    - **_low, _high**: 95 % interval over seeds: Student's t, of a ratio on its logarithms, of the median steps the sign
      test's. NaN for one seed, of the median for fewer than six. Wider where seeds were added until verdicts were
      decided, so that 95 % hold over all planned looks.

    Args:
        runs: As from `load_runs`.
        metric: The tag; None takes study.yaml's, or the first of held-out gold, held-out proxy and training reward.
        baselines: arm -> arm to compare it with; None takes study.yaml's, or else compares with plain GRPO.
        target_fraction: In (0, 1]; None takes study.yaml's, or 0.9.
        target: An explicit target in units of the metric, instead.
        status: As from `load_status`. None reads the status of the folder that `runs` were loaded from
            (`runs.attrs["path"]`); for a table without that note, every run that logged finite values counts.

    Returns:
        The columns `COLUMNS`, one row an arm in the order of the study. `baseline` is "" for an arm that stands alone.

    Raises:
        ReportError: The metric or a baseline does not exist.
    """
    path = runs.attrs.get("path")
    if status is None:
        status = status_of(runs) if path is None else load_status(path)
    settings = read_settings(path, runs, status, metric=metric, target=target)
    if baselines is not None:
        arms = {str(arm) for arm in status["arm"]} | set(settings.arms)
        unknown = sorted((set(baselines) | set(baselines.values())) - arms)
        if unknown:
            raise ReportError(f"no such arm: {', '.join(unknown)}; the arms are {', '.join(sorted(arms))}")
        settings = replace(settings, baselines=dict(baselines))
    if target_fraction is not None:
        settings = replace(settings, target_fraction=target_fraction)
    status = with_reasons(with_planned_runs(status, settings), runs, settings.metric)
    return table_of(compare(runs, status, settings))


def table_of(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return the efficiency table of `comparisons`, in their order."""
    return pd.DataFrame([comparison.row() for comparison in comparisons], columns=COLUMNS)


def compare(
    runs: pd.DataFrame,
    status: pd.DataFrame,
    settings: Settings,
    pairs: Sequence[tuple[str, str | None]] | None = None,
) -> list[Comparison]:
    """Compare arms with their baselines.

    Args:
        runs: As from `load_runs`.
        status: As from `with_reasons`: only runs without a reason count.
        settings: Arms, baselines and metric.
        pairs: (arm, baseline or None); None: every arm with its own baseline, in the order of the settings.
    """
    if pairs is None:
        arms = settings.order({str(arm) for arm in status["arm"]} | set(settings.baselines))
        pairs = [(arm, settings.baselines.get(arm)) for arm in arms]
    usable = included(runs, status)
    curves = curves_of(usable, settings.metric)
    tokens = curves_of(usable, beside(settings.metric, metric_keys.NUM_TOKENS))
    seconds = curves_of(usable, beside(settings.metric, metric_keys.TRAIN_SECONDS))
    return [_compare(arm, baseline, curves, (tokens, seconds), status, settings) for arm, baseline in pairs]


def _compare(
    arm: str,
    baseline: str | None,
    curves: Curves,
    costs: tuple[Curves, Curves],
    status: pd.DataFrame,
    settings: Settings,
) -> Comparison:
    own, other, level = curves.get(arm, {}), curves.get(baseline or arm, {}), settings.level
    paired_seeds = tuple(sorted(set(own) & set(other))) if baseline else ()
    target = target_of(list(other.values()), settings)
    span = common_span([*own.values(), *other.values()])
    auc = {seed: curve.mean_over(*span) for seed, curve in own.items()} if span[0] < span[1] else {}
    crossings = (
        {} if math.isnan(target.value) else {seed: curve.first_crossing(target.value) for seed, curve in own.items()}
    )
    both = [seed for seed in paired_seeds if seed in auc]
    baseline_auc = [other[seed].mean_over(*span) for seed in both]
    return Comparison(
        arm=arm,
        baseline=baseline,
        metric=settings.metric,
        seeds=tuple(sorted(own)),
        n_excluded=_excluded(status, arm),
        baseline_excluded=0 if baseline is None else _excluded(status, baseline),
        paired_seeds=paired_seeds,
        target=target,
        span=span,
        steps=estimate_median(list(crossings.values()), level),
        tokens=_cost_to_target(crossings, costs[0].get(arm, {})),
        seconds=_cost_to_target(crossings, costs[1].get(arm, {})),
        run_tokens=_cost_of_run(own, costs[0].get(arm, {})),
        run_seconds=_cost_of_run(own, costs[1].get(arm, {})),
        n_reached=sum(math.isfinite(step) for step in crossings.values()),
        speedup=speedup_of([(own[seed], other[seed]) for seed in paired_seeds], target.value, level),
        final=estimate_mean([curve.final for curve in own.values()], level),
        auc=estimate_mean(list(auc.values()), level),
        paired=estimate_mean([auc[seed] - theirs for seed, theirs in zip(both, baseline_auc, strict=True)], level),
        last_steps=tuple(sorted({float(curve.steps[-1]) for curve in [*own.values(), *other.values()]})),
        pairing=pairing_of([auc[seed] for seed in both], baseline_auc),
    )


def _excluded(status: pd.DataFrame, arm: str) -> int:
    return int(np.sum((status["arm"] == arm) & status["reason"].notna()))


def target_of(baseline: list[Curve], settings: Settings) -> Target:
    """Return the target that the curves of a baseline set."""
    firsts, finals = [curve.first for curve in baseline], [curve.final for curve in baseline]
    first, final = (float(np.mean(values)) if values else math.nan for values in (firsts, finals))
    rise = estimate_mean([curve.final - curve.first for curve in baseline], settings.level)
    if settings.target is not None:
        return Target(settings.target, first, final, True, rise)
    value = first + settings.target_fraction * (final - first) if final > first else math.nan
    return Target(value, first, final, False, rise)


def _cost_to_target(crossings: Mapping[int, float], costs: Mapping[int, Curve]) -> float:
    """Return the median cost at the crossing; inf where not reached, NaN where a seed logged no cost there."""
    values = [
        step if math.isinf(step) else costs[seed].at(step) if seed in costs else math.nan
        for seed, step in crossings.items()
    ]
    return float(np.median(values)) if values and not np.isnan(values).any() else math.nan


def _cost_of_run(curves: Mapping[int, Curve], costs: Mapping[int, Curve]) -> float:
    """Return the mean over seeds of the last cost; NaN where a seed logged none, or there is no seed."""
    return (
        float(np.mean([costs[seed].values[-1] for seed in curves]))
        if curves and costs.keys() >= curves.keys()
        else math.nan
    )
