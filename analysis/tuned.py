"""Each arm at its own best point, chosen on tuning seeds and judged on others, beside equal settings and equal KL."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.claims import Claim, corrected
from analysis.curves import beside, curves_of
from analysis.efficiency import Comparison, compare
from analysis.errors import ReportError
from analysis.loading import load_study
from analysis.reward_kl import EqualKL, at_equal_kl
from analysis.selection import included, with_planned_runs, with_reasons
from analysis.settings import Settings, read_settings
from analysis.statistics import NO_ESTIMATE, Estimate
from analysis.tuning import Sensitivity, sensitivity_of
from analysis.wording import count, number, spread
from grpovi_lightning import metric_keys
from grpovi_lightning.run_record.choice import Judged, judged


@dataclass(frozen=True)
class TunedArm:
    """One arm of the study file, judged on the seeds that chose nothing.

    Attributes:
        arm: Its name in the study file.
        baseline: The arm it is compared with, or None.
        point: Name of its best point, or of the arm where it has no `values`.
        label: The values of the best point; "" where it has none.
        tuning_score: Mean over the tuning seeds of its area; NaN where it has no `values`.
        own: Its best point, compared with the best point of the baseline; without a baseline it stands alone.
        equal_label: The values of its point that has the settings of the baseline's best one; "" where nothing has.
        equal: That point, compared with the best point of the baseline; None where there is none.
        equal_kl: The best points of the two at equal KL; None where KL was not logged in both, or did not rise.
        edges: Values of its best point at the end of the grid, in words.
    """

    arm: str
    baseline: str | None
    point: str
    label: str
    tuning_score: float
    own: Comparison
    equal_label: str
    equal: Comparison | None
    equal_kl: EqualKL | None
    edges: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether its best point has the settings of the baseline's best one."""
        return self.equal is not None and self.equal.arm == self.point

    def row(self) -> dict[str, object]:
        """Return the row of the table; what is not known is NaN."""
        row: dict[str, object] = {
            "arm": self.arm,
            "baseline": self.baseline or "",
            "point": self.point,
            "tuning_score": self.tuning_score,
            "n_seeds": len(self.own.seeds),
            **_columns("auc", self.own.auc),
            **_columns("own_diff", self.own.paired),
            "equal_point": "" if self.equal is None else self.equal.arm,
            **_columns("equal_diff", NO_ESTIMATE if self.equal is None else self.equal.paired),
            "kl": math.nan if self.equal_kl is None else self.equal_kl.kl,
            **_columns("kl_diff", NO_ESTIMATE if self.equal_kl is None else self.equal_kl.difference),
        }
        return row


@dataclass(frozen=True)
class TunedComparison:
    """The arms of a tuned study.

    Attributes:
        metric: The tag that judges; higher is better.
        chosen_by: The tag that the points were chosen by.
        tuning_seeds: Seeds on which points were chosen.
        seeds: Seeds that judge, none of them a tuning seed.
        arms: One an arm of the study file, in its order.
        sensitivity: What each point reached on the tuning seeds.
    """

    metric: str
    chosen_by: str
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    arms: tuple[TunedArm, ...]
    sensitivity: Sensitivity

    def table(self) -> pd.DataFrame:
        """Return a row for each arm.

        Returns:
            `arm`, `baseline`, `point`, `tuning_score`, `n_seeds`; `auc` of the best point on the judging seeds;
            `own_diff`: that minus the best point of the baseline; `equal_point` and `equal_diff`: the same at the
            settings of the baseline's best point; `kl` and `kl_diff`: the best points at equal KL (nats a token).
            Each estimate with the ends of its 95 % interval, Student's t, in `_low` and `_high` behind its name.
        """
        return pd.DataFrame([arm.row() for arm in self.arms])


def tuned_comparison(study_dir: str | Path, *, metric: str | None = None) -> TunedComparison:
    """Compare each arm at its own best point, at equal settings and at equal KL.

    Args:
        study_dir: A study with `tuning_seeds`, whose points have been chosen by `grpovi compare`.
        metric: The tag that judges, instead of study.yaml's; the choice stays as it was made.

    Raises:
        ReportError: The folder holds no such study, or nothing has been chosen in it yet.
    """
    runs, status = load_study(study_dir)
    settings = read_settings(study_dir, runs, status, metric=metric)
    found = sensitivity_of(runs, status, settings)
    if settings.study is None or not settings.study.tuning_seeds or found is None:
        raise ReportError(f"{study_dir} has no tuning seeds, so no points were chosen; add `tuning_seeds` to its study")
    if settings.choice is None:
        raise ReportError(f"{study_dir}: {settings.notes[0]} `grpovi compare` goes on")
    counted = with_reasons(with_planned_runs(status, settings), runs, settings.metric)
    return tuned_of(runs, counted, settings, found)


def tuned_of(runs: pd.DataFrame, status: pd.DataFrame, settings: Settings, sensitivity: Sensitivity) -> TunedComparison:
    """Compute the comparison.

    Args:
        runs: As from `load_runs`.
        status: As from `with_reasons`, of the runs that are judged.
        settings: Of a study with a choice.
        sensitivity: Of its points.
    """
    study, choice = settings.study, settings.choice
    assert study is not None and choice is not None, "nothing was chosen"
    arms = {each.arm: each for each in judged(study, choice)}
    pairs: list[tuple[str, str | None]] = []
    for each in arms.values():
        theirs = None if each.baseline is None else arms[each.baseline].best
        pairs += [(name, theirs) for name in dict.fromkeys((each.best, each.equal)) if name is not None]
    comparisons = {each.arm: each for each in compare(runs, status, settings, pairs)}
    counted = included(runs, status)
    metric, kl = (curves_of(counted, key) for key in (settings.metric, beside(settings.metric, metric_keys.KL)))

    def tuned(each: Judged) -> TunedArm:
        own = comparisons[each.best]
        point, score = settings.points.get(each.best), choice.scores.get(each.best)
        equal = None if each.equal is None else comparisons[each.equal]
        equal_point = None if each.equal is None else settings.points.get(each.equal)
        return TunedArm(
            arm=each.arm,
            baseline=each.baseline,
            point=each.best,
            label="" if point is None else point.label,
            tuning_score=math.nan if score is None else score.mean,
            own=own,
            equal_label="" if equal_point is None else equal_point.label,
            equal=equal,
            equal_kl=None
            if own.baseline is None
            else at_equal_kl(each.best, own.baseline, own.paired_seeds, metric, kl, settings.level),
            edges=() if point is None else tuple(sensitivity.edges(each.best)),
        )

    return TunedComparison(
        metric=settings.metric,
        chosen_by=choice.metric,
        tuning_seeds=choice.tuning_seeds,
        seeds=settings.seeds,
        arms=tuple(tuned(each) for each in arms.values()),
        sensitivity=sensitivity,
    )


@dataclass(frozen=True)
class _Claims:
    """What may be said of one arm: between the best points, at equal settings where those differ, and at equal KL."""

    own: Claim
    equal: Claim | None
    at_kl: Claim | None


def sentences_of(tuned: TunedComparison) -> list[tuple[str, list[str]]]:
    """Say in plain words what each arm with a baseline reached: (question, sentences).

    Differences between best points and at equal settings are tested as one family over all arms, those at equal KL as
    another, each corrected by Holm's method.
    """
    arms = {each.arm: each for each in tuned.arms}
    compared = [each for each in tuned.arms if each.baseline is not None]
    return [
        (
            f"Is {each.arm} better than {each.baseline}, each at its best?",
            _sentences(each, arms[str(each.baseline)], claims),
        )
        for each, claims in zip(compared, _claims(compared), strict=True)
    ]


def _claims(arms: Sequence[TunedArm]) -> list[_Claims]:
    equal = [None if each.equal is None or each.same else (each.equal.paired, 0) for each in arms]
    at_kl = [None if each.equal_kl is None else (each.equal_kl.difference, 0) for each in arms]
    own = [(each.own.paired, 0) for each in arms]
    settings = iter(corrected([*own, *(each for each in equal if each is not None)]))
    penalties = iter(corrected([each for each in at_kl if each is not None]))
    best = [next(settings) for _ in arms]
    return [
        _Claims(claim, None if one is None else next(settings), None if two is None else next(penalties))
        for claim, one, two in zip(best, equal, at_kl, strict=True)
    ]


def _sentences(arm: TunedArm, baseline: TunedArm, claims: _Claims) -> list[str]:
    if not arm.own.paired_seeds:
        return [f"No seed counts in the best point of {arm.arm} and in that of {baseline.arm}, so nothing is judged."]
    n = count(len(arm.own.paired_seeds), "seed")
    said = [
        f"Each at its own best, the mean {arm.own.metric} over the run of {_named(arm)} minus that of "
        f"{_named(baseline)}, over {n}: {_difference(claims.own)}."
    ]
    if arm.same:
        said.append("Both have the same settings there, so this is the comparison at equal settings, too.")
    elif claims.equal is None:
        said.append(f"At equal settings nothing is compared: {arm.arm} has no usable point like {_named(baseline)}.")
    else:
        said.append(f"At equal settings, those of {_named(baseline)}: {_difference(claims.equal)}.")
    if arm.equal_kl is None or claims.at_kl is None:
        said.append(
            "At equal KL nothing is compared: KL was not logged in both (with `beta: 0`, `evaluation: {kl: true}` logs "
            "it), or did not rise."
        )
    else:
        level = number(arm.equal_kl.kl)
        difference = _difference(claims.at_kl)
        said.append(f"At equal KL ({level} nats a token), {arm.own.metric} of the two best points: {difference}.")
    said += _conclusion(claims)
    for each in (arm, baseline):
        said += [f"The best point of {each.arm} has {edge}: there may be a better one beyond." for edge in each.edges]
    return said


def _conclusion(claims: _Claims) -> list[str]:
    """Draw what follows from the three differences; without a difference nothing follows."""
    ours = claims.own.direction
    theirs, same_kl = (0 if claim is None else claim.direction for claim in (claims.equal, claims.at_kl))
    said = []
    if theirs and ours != theirs:
        effect, penalty = ("gain", "weaker") if theirs > 0 else ("loss", "stronger")
        there = "turns round" if ours else "cannot be seen"
        said.append(
            f"The {effect} at equal settings {there} between the best points, so it cannot be told from a step of "
            f"another size or a {penalty} penalty."
        )
    if ours and claims.at_kl is not None:
        effect, penalty = ("gain", "weaker") if ours > 0 else ("loss", "stronger")
        if same_kl == ours:
            said.append(f"The {effect} between the best points is there at equal KL as well.")
        else:
            said.append(f"At equal KL the {effect} is not there, so it cannot be told from a {penalty} penalty.")
    return said


def _difference(claim: Claim) -> str:
    if math.isnan(claim.estimate.point):
        return "not known, because the runs share no range of steps"
    text = f"{number(claim.estimate.point, signed=True)} ({spread(claim.estimate, signed=True)})"
    return text if claim.direction else f"{text}; no difference can be seen"


def _named(arm: TunedArm) -> str:
    return f"{arm.arm} ({arm.label})" if arm.label else arm.arm


def _columns(name: str, estimate: Estimate) -> Mapping[str, float]:
    return {name: estimate.point, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
