"""What a reward model that learned while the policy did was worth and what it cost: one row an arm."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from analysis.curves import Curve, Curves, curves_of
from analysis.efficiency import Comparison
from analysis.statistics import LEVEL, NO_ESTIMATE, Estimate, estimate_mean, estimate_ratio
from grpovi_lightning import metric_keys

WINDOW_STEPS = 10
"""Training steps, at the beginning and at the end, over which the agreement with the observed reward is averaged."""


@dataclass(frozen=True)
class OnlineArm:
    """One arm of a study in which a reward model learned during training; means over seeds unless it says otherwise.

    An arm that learned from no label has only `labels` (0), the agreements and `final`. A quantity that a seed did not
    measure is averaged over the others; `Estimate.values` has one entry for each seed that did.

    Attributes:
        n_seeds: Seeds that count.
        observed: The observed component that the agreements are with; "" where none was logged.
        labels: Labels learned from by the end of the run.
        unanswered: Questions without an answer at the end of the run.
        pair_accuracy: Of fresh comparisons before learning from them, mean over the last third of the rounds.
        cross_entropy: Of the same, nats.
        agreement_first: Share of pairs that the trained-on reward orders as the observed one does, mean over the
            first `WINDOW_STEPS` training steps, or over the first half of a run of fewer than twice as many.
        agreement_last: The same over the last ones.
        seconds_early: Seconds to learn from a round, median over the first third of the rounds.
        seconds_late: The same over the last third.
        seconds_ratio: Late by early, geometric mean over the seeds with two rounds or more.
        bytes_first: Bytes kept for the next round, after the first round.
        bytes_last: The same after the last round.
        regret: Mean over all rounds, in units of the gold reward.
        final: Of the compared metric, as in `Comparison`.
    """

    arm: str
    n_seeds: int
    observed: str
    labels: Estimate
    unanswered: Estimate
    pair_accuracy: Estimate
    cross_entropy: Estimate
    agreement_first: Estimate
    agreement_last: Estimate
    seconds_early: Estimate
    seconds_late: Estimate
    seconds_ratio: Estimate
    bytes_first: Estimate
    bytes_last: Estimate
    regret: Estimate
    final: Estimate

    def row(self) -> dict[str, object]:
        """Return the row of the table: each of `QUANTITIES` with its interval and the number of its seeds."""
        row: dict[str, object] = {"arm": self.arm, "n_seeds": self.n_seeds, "observed": self.observed}
        for name in QUANTITIES:
            estimate: Estimate = getattr(self, name)
            row |= {name: estimate.point, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            row[f"{name}_seeds"] = len(estimate.values)
        return row


QUANTITIES = tuple(field.name for field in fields(OnlineArm) if field.type is Estimate)
COLUMNS = [
    *("arm", "n_seeds", "observed"),
    *(f"{name}{end}" for name in QUANTITIES for end in ("", "_low", "_high", "_seeds")),
]


def online_table(arms: Iterable[OnlineArm]) -> pd.DataFrame:
    """Return the table of `arms`, in their order, with the columns `COLUMNS`."""
    return pd.DataFrame([arm.row() for arm in arms], columns=COLUMNS)


def online_arms(
    runs: pd.DataFrame, metric: str, comparisons: Sequence[Comparison], level: float = LEVEL
) -> list[OnlineArm]:
    """Summarise every arm of a study in which a reward model learned.

    Args:
        runs: Rows of the runs that count.
        metric: The compared tag.
        comparisons: One an arm.
        level: Of the intervals.

    Returns:
        One entry an arm, in the order of `comparisons`, also for arms whose reward model was frozen; none where no
        run logged the labels that it learned from.
    """
    counts = (metric_keys.ONLINE_LABELS, metric_keys.held_out(metric_keys.ONLINE_LABELS))
    if set(counts).isdisjoint(runs["metric"]):
        return []
    observed = _observed(runs, metric)
    agreement = curves_of(runs, metric_keys.pair_agreement(observed))
    labels, unanswered = (_at_the_end(runs, key) for key in (metric_keys.ONLINE_LABELS, metric_keys.ONLINE_UNANSWERED))
    accuracy, entropy, seconds, state, regret = (
        curves_of(runs, key)
        for key in (
            metric_keys.ONLINE_PAIR_ACCURACY,
            metric_keys.ONLINE_CROSS_ENTROPY,
            metric_keys.ONLINE_UPDATE_SECONDS,
            metric_keys.ONLINE_STATE_BYTES,
            metric_keys.ONLINE_REGRET,
        )
    )

    def over_seeds(curves: Curves, arm: str, summary: Callable[[Curve], float]) -> Estimate:
        return estimate_mean([summary(curve) for curve in curves.get(arm, {}).values()], level)

    return [
        OnlineArm(
            arm=(arm := comparison.arm),
            n_seeds=len(comparison.seeds),
            observed=observed,
            labels=estimate_mean([labels.get((arm, seed), 0.0) for seed in comparison.seeds], level),
            unanswered=estimate_mean(
                [unanswered[arm, seed] for seed in comparison.seeds if (arm, seed) in unanswered], level
            ),
            pair_accuracy=over_seeds(accuracy, arm, lambda curve: float(curve.values[-_third(curve) :].mean())),
            cross_entropy=over_seeds(entropy, arm, lambda curve: float(curve.values[-_third(curve) :].mean())),
            agreement_first=over_seeds(agreement, arm, lambda curve: float(curve.values[: _window(curve)].mean())),
            agreement_last=over_seeds(agreement, arm, lambda curve: float(curve.values[-_window(curve) :].mean())),
            seconds_early=over_seeds(seconds, arm, _early),
            seconds_late=over_seeds(seconds, arm, _late),
            seconds_ratio=_ratio(seconds.get(arm, {}), level),
            bytes_first=over_seeds(state, arm, lambda curve: curve.first),
            bytes_last=over_seeds(state, arm, lambda curve: curve.last),
            regret=over_seeds(regret, arm, lambda curve: float(curve.values.mean())),
            final=comparison.final,
        )
        for comparison in comparisons
    ]


def agreement_names(runs: pd.DataFrame) -> list[str]:
    """Return the observed reward components whose agreement with the trained-on reward was logged, sorted."""
    start, end = metric_keys.pair_agreement("\0").split("\0")
    return sorted(
        key.removeprefix(start).removesuffix(end)
        for key in runs["metric"].unique()
        if key.startswith(start) and key.endswith(end)
    )


def against_labels(curves: Curves, labels: Curves) -> dict[str, dict[int, Curve]]:
    """Put labels in the place of steps, from the steps at which both were measured.

    Args:
        curves: arm -> seed -> curve over steps.
        labels: The labels learned from at those steps.

    Returns:
        arm -> seed -> curve over labels, with the last value at each number of labels; only those that have one.
    """
    over_labels: dict[str, dict[int, Curve]] = {}
    for arm, seeds in curves.items():
        for seed in sorted(set(seeds) & set(labels.get(arm, {}))):
            curve, counts = seeds[seed], labels[arm][seed]
            _, here, there = np.intersect1d(curve.steps, counts.steps, return_indices=True)
            last = dict(zip(counts.values[there].tolist(), curve.values[here].tolist(), strict=True))
            if last:
                points = np.array(sorted(last.items()))
                over_labels.setdefault(arm, {})[seed] = Curve(points[:, 0], points[:, 1])
    return over_labels


def _observed(runs: pd.DataFrame, metric: str) -> str:
    """Return the component that the compared metric is of, if that agreement was logged; else the first, or ""."""
    names = agreement_names(runs)
    plain = metric.removeprefix(metric_keys.EVAL_PREFIX)
    return next((name for name in names if metric_keys.rewards_mean(name) == plain), names[0] if names else "")


def _at_the_end(runs: pd.DataFrame, key: str) -> dict[tuple[str, int], float]:
    """Return (arm, seed) -> the last value of a count that rounds log and evaluations log beside them.

    An evaluation after s steps comes before the round of step s, so the round's value stands where both are at s.
    """
    latest: dict[tuple[str, int], tuple[float, float]] = {}
    for curves in (curves_of(runs, metric_keys.held_out(key)), curves_of(runs, key)):
        for arm, seeds in curves.items():
            for seed, curve in seeds.items():
                step, _ = latest.get((arm, seed), (-np.inf, 0.0))
                if curve.steps[-1] >= step:
                    latest[arm, seed] = (float(curve.steps[-1]), curve.last)
    return {place: value for place, (_, value) in latest.items()}


def _third(curve: Curve) -> int:
    return max(1, curve.values.size // 3)


def _window(curve: Curve) -> int:
    return max(1, min(WINDOW_STEPS, curve.values.size // 2))


def _early(curve: Curve) -> float:
    return float(np.median(curve.values[: _third(curve)]))


def _late(curve: Curve) -> float:
    return float(np.median(curve.values[-_third(curve) :]))


def _ratio(seconds: Mapping[int, Curve], level: float) -> Estimate:
    pairs = [(_early(curve), _late(curve)) for curve in seconds.values() if curve.values.size > 1]
    ratios = [late / early for early, late in pairs if early > 0 and late > 0]
    return estimate_ratio(ratios, level) if ratios else NO_ESTIMATE
