"""What a report compares, read from study.yaml or, for bare runs, from the runs themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.errors import ReportError
from grpovi_lightning import metric_keys

STUDY_FILE = "study.yaml"
DEFAULT_TARGET_FRACTION = 0.9
IDENTITY_ADJUSTMENT = "IdentityAdjustment"
"""Class name that marks plain GRPO in status.json."""

GOLD_MEAN = metric_keys.held_out(metric_keys.rewards_mean("gold"))
DEFAULT_METRICS = (GOLD_MEAN, metric_keys.held_out(metric_keys.REWARD), metric_keys.REWARD)
"""Taken in this order where no metric was named: held-out gold, held-out proxy, training reward."""


@dataclass(frozen=True)
class Settings:
    """What is compared with what.

    Attributes:
        name: Name of the study, for headings.
        metric: The tag that is compared; higher is better.
        metric_origin: Why this metric, in words.
        baselines: arm -> the arm it is compared with. Arms without an entry stand alone.
        target_fraction: The target lies at this share of the baseline's rise, in (0, 1].
        target: An explicit target in units of the metric, which overrides `target_fraction`.
        pair_accuracy: Run directory, relative to the study, whose held-out pair accuracy is shown.
        arms: Order of the arms; arms that are not named here follow by name.
        seeds: Seeds that study.yaml plans for every arm; empty for bare runs.
        contrasts: (arm, other arm) that get a verdict besides the arms with baselines.
        notes: Sentences for the report about how the settings came about.
    """

    name: str
    metric: str
    metric_origin: str
    baselines: Mapping[str, str] = field(default_factory=dict)
    target_fraction: float = DEFAULT_TARGET_FRACTION
    target: float | None = None
    pair_accuracy: str | None = None
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the fields that come from users."""
        if not 0 < self.target_fraction <= 1:
            raise ReportError(f"target_fraction must be above 0 and at most 1, got {self.target_fraction}")
        for arm, baseline in self.baselines.items():
            if arm == baseline:
                raise ReportError(f"arm {arm} is its own baseline; name another arm or leave the baseline out")
            if baseline in self.baselines:
                raise ReportError(
                    f"arm {arm} is compared with {baseline}, which is itself compared with {self.baselines[baseline]}; "
                    "a baseline must stand alone"
                )

    def order(self, arms: set[str]) -> list[str]:
        """`arms` in the order of the report."""
        named = [arm for arm in self.arms if arm in arms]
        return named + sorted(arms - set(named))


def read_settings(
    study_dir: str | Path,
    runs: pd.DataFrame,
    status: pd.DataFrame,
    *,
    metric: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> Settings:
    """The settings of a study folder, or of a folder of bare runs.

    Args:
        study_dir: Holds study.yaml, or only runs.
        runs: As from `load_runs`; says which metrics exist.
        status: As from `load_status`; says which arms exist and which is plain GRPO.
        metric: Overrides study.yaml and the default order `DEFAULT_METRICS`.
        baseline: Compares every other arm with this one, instead of what study.yaml says.
        target: An explicit target in units of the metric.

    Raises:
        ReportError: study.yaml cannot be used, or names an arm or metric that does not exist.
    """
    file = Path(study_dir) / STUDY_FILE
    settings = _from_study(file, runs) if file.is_file() else _from_bare_runs(Path(study_dir), runs, status)
    if metric is not None:
        settings = replace(settings, metric=metric, metric_origin="it was asked for")
    if baseline is not None:
        arms = {str(arm) for arm in status["arm"]} | set(settings.arms)
        if baseline not in arms:
            raise ReportError(f"baseline {baseline!r} is no arm; the arms are {', '.join(sorted(arms))}")
        baselines = dict.fromkeys(sorted(arms - {baseline}), baseline)
        settings = replace(settings, baselines=baselines, contrasts=(), notes=())
    if target is not None:
        settings = replace(settings, target=target)
    check_metric(runs, settings.metric)
    return settings


def check_metric(runs: pd.DataFrame, metric: str) -> None:
    """Raises ReportError, naming the metrics that exist, where runs logged something but never `metric`."""
    known = sorted(runs["metric"].unique())
    if known and metric not in known:
        raise ReportError(f"no run logged {metric!r}; the metrics that exist are {', '.join(known)}")


def default_metric(runs: pd.DataFrame) -> tuple[str, str]:
    """The first of `DEFAULT_METRICS` that was logged, and why it was taken, in words."""
    known = set(runs["metric"])
    for place, metric in enumerate(DEFAULT_METRICS):
        if metric in known:
            missing = " and ".join(DEFAULT_METRICS[:place])
            return metric, f"the default where no run logged {missing}" if missing else "the default"
    return DEFAULT_METRICS[-1], "the default; no run logged it"


def default_baselines(status: pd.DataFrame) -> tuple[dict[str, str], tuple[str, ...]]:
    """Compares every arm that adjusts rewards with the one whose adjustment is the identity, if there is exactly one.

    Runs that say nothing of an adjustment (fine-tuning, reward models) are compared with nothing.

    Returns:
        arm -> baseline, and a sentence where no comparison could be made.
    """
    adjustments = zip(status["arm"], status["adjustment"], strict=True)
    plain = {str(arm) for arm, name in adjustments if name is not None and name.split(".")[-1] == IDENTITY_ADJUSTMENT}
    candidates = sorted(plain)
    adjusted = {str(arm) for arm, name in zip(status["arm"], status["adjustment"], strict=True) if name is not None}
    others = sorted(adjusted - plain)
    if len(candidates) == 1:
        return dict.fromkeys(others, candidates[0]), ()
    found = ", ".join(candidates) or "none"
    return {}, (
        "No arms are compared: without study.yaml the baseline is the one arm whose adjustment is "
        f"{IDENTITY_ADJUSTMENT}, and the arms with it are: {found}. Name the baseline to compare.",
    )


def _from_bare_runs(study_dir: Path, runs: pd.DataFrame, status: pd.DataFrame) -> Settings:
    metric, origin = default_metric(runs)
    baselines, notes = default_baselines(status)
    name = study_dir.resolve().name
    return Settings(name=name, metric=metric, metric_origin=origin, baselines=baselines, notes=notes)


def _from_study(file: Path, runs: pd.DataFrame) -> Settings:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReportError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    study = _mapping(content, file, "the file")
    report = _mapping(study.get("report"), file, "report")
    arms = {
        str(arm): _mapping(options, file, f"arms.{arm}")
        for arm, options in _mapping(study.get("arms"), file, "arms").items()
    }
    baselines = {arm: str(options["baseline"]) for arm, options in arms.items() if options.get("baseline") is not None}
    for arm, baseline in baselines.items():
        if baseline not in arms:
            raise ReportError(f"{file}: arms.{arm}.baseline is {baseline!r}; expected one of {', '.join(arms)}")
    metric, origin = default_metric(runs)
    if report.get("metric") is not None:
        metric, origin = str(report["metric"]), "named in study.yaml"
    pair_accuracy = report.get("pair_accuracy")
    return Settings(
        name=str(study.get("name", file.parent.name)),
        metric=metric,
        metric_origin=origin,
        baselines=baselines,
        target_fraction=_fraction(report.get("target_fraction", DEFAULT_TARGET_FRACTION), file),
        pair_accuracy=None if pair_accuracy is None else str(pair_accuracy),
        arms=tuple(arms),
        seeds=_seeds(study.get("seeds"), file),
        contrasts=_contrasts(report.get("contrasts"), tuple(arms), file),
    )


def _mapping(value: object, file: Path, place: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ReportError(f"{file}: {place} must be a mapping, got {type(value).__name__}")
    return value


def _contrasts(value: object, arms: tuple[str, ...], file: Path) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    pairs: list[Any] = value if isinstance(value, list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1] or not set(map(str, pair)) <= set(arms):
            raise ReportError(
                f"{file}: report.contrasts: got {pair!r}, expected pairs of different arms out of {', '.join(arms)}"
            )
    return tuple((str(pair[0]), str(pair[1])) for pair in pairs)


def _fraction(value: object, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReportError(f"{file}: report.target_fraction must be a number, got {value!r}")
    return float(value)


def _seeds(value: object, file: Path) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in value):
        raise ReportError(f"{file}: seeds must be a list of integers, got {value!r}")
    return tuple(value)
