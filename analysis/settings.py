"""What a report compares, read from study.yaml or, for bare runs, from the runs themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import yaml

from analysis.errors import ReportError
from analysis.statistics import LEVEL
from grpovi_lightning import metric_keys
from grpovi_lightning.run_record.choice import Choice, judged, judged_arms, outdated, read_choice
from grpovi_lightning.run_record.layout import CHOICE_FILE, STUDY_FILE, RecordError
from grpovi_lightning.run_record.looks import Looks, read_looks
from grpovi_lightning.run_record.study import StudyRecord, parse_study
from grpovi_lightning.run_record.sweeps import Point

DEFAULT_TARGET_FRACTION = 0.9

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
        study: What study.yaml says; None for bare runs.
        looks: The looks that are planned and made, where seeds are added until verdicts are decided.
        choice: The choice of points on tuning seeds, where there is one. `arms` and `baselines` are then those that are
            judged: the best point of each arm, and the point that has the settings of its baseline's best one.
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
    study: StudyRecord[str] | None = field(default=None, repr=False)
    looks: Looks | None = field(default=None, repr=False)
    choice: Choice | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # What comes with arguments instead of study.yaml; a study file has been checked by `parse_study`.
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

    @property
    def level(self) -> float:
        """Chance that an interval misses; where there are several looks, the part of it that the last one may spend."""
        return LEVEL if self.looks is None else LEVEL * self.looks.share

    @property
    def points(self) -> dict[str, Point]:
        """Name of a point -> the point, for all arms of the study with `values`."""
        return {arm.name: arm.point for arm in self.study.arms if arm.point} if self.study else {}

    @property
    def tasks(self) -> dict[str, str]:
        """Arm -> its task, where a study compares methods over several tasks; else empty."""
        return {arm.name: arm.task for arm in self.study.arms if arm.task} if self.study else {}

    @property
    def grid_seeds(self) -> tuple[int, ...]:
        """The seeds on which every point runs."""
        if self.study is None:
            return ()
        return self.study.tuning_seeds or (self.looks and self.looks.seen) or self.study.seeds

    @property
    def planned(self) -> dict[str, tuple[int, ...]]:
        """Arm -> the seeds on which it is compared."""
        tuning = self.points if self.choice is None else {}
        return {arm: self.grid_seeds if arm in tuning else self.seeds for arm in self.arms}

    def order(self, arms: set[str]) -> list[str]:
        """Return `arms` in the order of the report."""
        named = [arm for arm in self.arms if arm in arms]
        return named + sorted(arms - set(named))


def read_settings(
    study_dir: str | Path | None,
    runs: pd.DataFrame,
    status: pd.DataFrame,
    *,
    metric: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
) -> Settings:
    """Read the settings of a study folder, or derive those of a folder of bare runs.

    Args:
        study_dir: Holds study.yaml, or only runs; None where the folder is not known.
        runs: As from `load_runs`; says which metrics exist.
        status: As from `load_status`; says which arms exist and which is plain GRPO.
        metric: Overrides study.yaml and the default order `DEFAULT_METRICS`.
        baseline: Compares every other arm with this one, instead of what study.yaml says.
        target: An explicit target in units of the metric.

    Raises:
        ReportError: study.yaml cannot be used, or names an arm or metric that does not exist.
    """
    if study_dir is not None and (file := Path(study_dir) / STUDY_FILE).is_file():
        settings = _from_study(file, runs)
    else:
        name = "" if study_dir is None else Path(study_dir).resolve().name
        baselines, notes = default_baselines(status)
        settings = Settings(name, *default_metric(runs), baselines, notes=notes)
    if metric is not None:
        settings = replace(settings, metric=metric, metric_origin="it was asked for")
    if baseline is not None:
        arms = {str(arm) for arm in status["arm"]} | set(settings.arms)
        if settings.choice is not None:
            arms -= set(settings.points) - set(settings.arms)
        if baseline not in arms:
            raise ReportError(f"baseline {baseline!r} is no arm; the arms are {', '.join(sorted(arms))}")
        baselines = dict.fromkeys(sorted(arms - {baseline}), baseline)
        settings = replace(settings, baselines=baselines, contrasts=(), notes=())
    if target is not None:
        settings = replace(settings, target=target)
    known = sorted(runs["metric"].unique())
    if known and settings.metric not in known:  # runs that logged nothing at all can still be listed
        raise ReportError(f"no run logged {settings.metric!r}; the metrics that exist are {', '.join(known)}")
    return settings


def default_metric(runs: pd.DataFrame) -> tuple[str, str]:
    """Return the first of `DEFAULT_METRICS` that was logged, and why it was taken, in words."""
    known = set(runs["metric"])
    for place, metric in enumerate(DEFAULT_METRICS):
        if metric in known:
            missing = " and ".join(DEFAULT_METRICS[:place])
            return metric, f"the default where no run logged {missing}" if missing else "the default"
    return DEFAULT_METRICS[-1], "the default; no run logged it"


def default_baselines(status: pd.DataFrame) -> tuple[dict[str, str], tuple[str, ...]]:
    """Compare every arm that adjusts rewards with the one that does not, if there is exactly one.

    Runs that say nothing of an adjustment (fine-tuning, reward models) are compared with nothing.

    Returns:
        arm -> baseline, and a sentence where no comparison could be made.
    """
    known = [(str(arm), adjusts) for arm, adjusts in zip(status["arm"], status["adjusts"], strict=True)]
    plain = sorted({arm for arm, adjusts in known if adjusts is False})
    others = sorted({arm for arm, adjusts in known if adjusts} - set(plain))
    if len(plain) == 1:
        return dict.fromkeys(others, plain[0]), ()
    return {}, (
        f"No arms are compared: without {STUDY_FILE} the baseline is the one arm that trains on its rewards as they "
        f"are, and the arms that do are: {', '.join(plain) or 'none'}. Name the baseline to compare.",
    )


def _from_study(file: Path, runs: pd.DataFrame) -> Settings:
    try:
        study = parse_study(yaml.safe_load(file.read_text(encoding="utf-8")), str(file), resolved=True)
        looks = read_looks(file.parent)
    except RecordError as error:
        raise ReportError(str(error)) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReportError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    metric, origin = default_metric(runs)
    if "metric" in study.report:
        metric, origin = study.report["metric"], f"named in {STUDY_FILE}"
    settings = Settings(
        name=study.name or file.parent.name,
        metric=metric,
        metric_origin=origin,
        baselines={arm.name: arm.baseline for arm in study.arms if arm.baseline is not None},
        target_fraction=float(study.report.get("target_fraction", DEFAULT_TARGET_FRACTION)),
        pair_accuracy=study.report.get("pair_accuracy"),
        arms=tuple(arm.name for arm in study.arms),
        seeds=study.seeds,
        contrasts=tuple((one, other) for one, other in study.report.get("contrasts") or ()),
        study=study,
        looks=looks,
    )
    return _with_choice(settings, study, file.parent) if study.tuning_seeds else settings


def _with_choice(settings: Settings, study: StudyRecord[str], folder: Path) -> Settings:
    """Return what is judged instead of all points, or all points with a note where nothing has been chosen yet."""
    try:
        choice = read_choice(folder)
    except RecordError as error:
        raise ReportError(str(error)) from None
    why = None if choice is None else outdated(study, choice)
    if choice is None or why:
        reason = "No point has been chosen yet" if choice is None else f"{CHOICE_FILE} is not of this study ({why})"
        note = f"{reason}, so all points are compared on the tuning seeds, and nothing is judged."
        return replace(settings, looks=None, notes=(note,))
    found = {each.arm: each for each in judged(study, choice)}
    baselines = {
        point: found[each.baseline].best
        for each in found.values()
        if each.baseline is not None
        for point in (each.best, each.equal)
        if point is not None
    }
    written = {arm.name: arm.written for arm in study.arms}
    contrasts = dict.fromkeys((written[one], written[other]) for one, other in settings.contrasts)
    return replace(
        settings,
        arms=tuple(judged_arms(study, choice)),
        baselines=baselines,
        contrasts=tuple((found[one].best, found[other].best) for one, other in contrasts),
        choice=choice,
    )
