"""What the numbers say, in plain words that read the same with the two arms exchanged.

A difference is called only where `analysis.claims` lets it be claimed: by Student's t over the paired seeds, corrected
for all differences that the report tests. docs/statistics.md shows how often that is right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.claims import Claim, Claims, claims_of
from analysis.efficiency import Comparison
from analysis.reward_kl import EqualKL
from analysis.statistics import LEVEL, Estimate, detectable, seeds_needed
from analysis.wording import count, interval, number, spread


@dataclass(frozen=True)
class Verdict:
    """The words for one comparison: the headline answers the question; then one sentence or two a quantity."""

    arm: str
    baseline: str
    headline: str
    sentences: tuple[str, ...]
    decided: bool
    """Whether a difference is claimed."""
    n_tested: int
    """Differences, of all verdicts of the report, that this one is corrected for."""

    @property
    def question(self) -> str:
        """What the comparison asks."""
        return f"Is {self.arm} faster than {self.baseline}?"


def verdicts_of(pairs: Sequence[tuple[Comparison, EqualKL | None]]) -> list[Verdict]:
    """Write the verdicts of a report, corrected for each other.

    Args:
        pairs: Comparisons with a baseline, each with the same pair at equal KL, if KL was logged.
    """
    claims = claims_of(pairs)
    return [_verdict(comparison, equal, own) for (comparison, equal), own in zip(pairs, claims, strict=True)]


def _verdict(comparison: Comparison, equal_kl: EqualKL | None, claims: Claims) -> Verdict:
    assert comparison.baseline is not None, "an arm that stands alone has no verdict"
    headline = f"No verdict on {comparison.arm} against {comparison.baseline}: no seed counts in both arms."
    sentences: list[str] = []
    if comparison.paired_seeds:
        headline = _headline(comparison, claims)
        sentences = [*_steps(comparison, claims.steps), _area(comparison, claims.area)]
        sentences += [
            *_equal_kl(comparison, equal_kl, claims),
            *_needed(claims.area),
            *_bought(comparison),
            *_caveats(comparison),
        ]
    return Verdict(
        arm=comparison.arm,
        baseline=comparison.baseline,
        headline=headline,
        sentences=(*sentences, *_uncounted(comparison)),
        decided=bool(comparison.paired_seeds) and bool(claims.overall),
        n_tested=claims.area.n_tested,
    )


def _headline(comparison: Comparison, claims: Claims) -> str:
    arm, baseline = comparison.arm, comparison.baseline
    n = len(comparison.paired_seeds)
    if n == 1:
        return f"{arm} against {baseline}: one seed only, so nothing can be said about other seeds."
    if comparison.paired.values and not any(comparison.paired.values):
        return f"Nothing tells {arm} from {baseline}: on each of the {n} seeds their areas are equal to the last digit."
    lost = comparison.n_excluded + comparison.baseline_excluded
    seeds = f", on the {n} seeds that count in both" if lost else ""
    steps, area, speedup = claims.steps.direction, claims.area.direction, comparison.speedup
    if steps * area < 0:
        soon, high = ("sooner", "lower") if steps > 0 else ("later", "higher")
        return f"Mixed: {arm} reached the target {soon} than {baseline}, but its reward over the run was {high}{seeds}."
    if steps:
        claim = f"{arm} is {'faster' if steps > 0 else 'slower'} than {baseline}"
        if n in (speedup.only_arm, speedup.only_baseline):
            one, two = (arm, baseline) if speedup.only_arm == n else (baseline, arm)
            return f"{claim}: on all {n} seeds only {one} reached the target, {two} did not."
        return f"{claim}{seeds}."
    if area:
        return f"{arm}'s reward over the run is {'higher' if area > 0 else 'lower'} than {baseline}'s{seeds}."
    if speedup.only_arm != speedup.only_baseline:
        missed = f"{arm} missed the target on {speedup.arm_missed} of {n} seeds, "
        missed += f"{baseline} on {speedup.baseline_missed}"
        return f"No difference between {arm} and {baseline} is certain with {n} seeds, but {missed}."
    return f"No difference between {arm} and {baseline} can be seen with {n} seeds."


def _steps(comparison: Comparison, claim: Claim) -> list[str]:
    arm, baseline, target, speedup = comparison.arm, comparison.baseline, comparison.target, comparison.speedup
    if math.isnan(target.value):
        return [
            f"There is no target: {baseline}'s {comparison.metric} did not rise "
            f"(mean {number(target.first)} at first, {number(target.final)} at the end)."
        ]
    goal = f"the target of {number(target.value)}"
    if speedup.already_there:
        return [
            f"On {speedup.already_there} of {count(len(comparison.paired_seeds), 'seed')} a run was at {goal} before "
            "training, so a ratio of steps has no meaning."
        ]
    ratio = _inverse(speedup.estimate)
    if math.isnan(ratio.point):
        return _censored(comparison, claim, goal)
    if len(comparison.paired_seeds) == 1:
        return [f"{arm} took {number(ratio.point)} times the steps of {baseline} to {goal} on the one seed."]
    if claim.direction:
        when = "sooner" if claim.direction > 0 else "later"
        return [
            f"{arm} reached {goal} {when} than {baseline}: {number(ratio.point)} times the steps ({spread(ratio)})."
        ]
    return [
        f"No difference in the steps to {goal} can be seen: {arm} took {number(ratio.point)} times the steps of "
        f"{baseline}; {_why_not(ratio, claim)}"
    ]


def _why_not(estimate: Estimate, claim: Claim, *, signed: bool = False) -> str:
    """Say why nothing is claimed; `estimate` is that of the claim, or its inverse."""
    ends = interval(estimate.low, estimate.high, signed=signed)
    if not estimate.excludes(claim.neutral):
        return f"the 95 % interval ({ends}) contains {claim.neutral}."
    of_look = "" if estimate.level == LEVEL else f", above the {number(estimate.level)} of this look"
    return (
        f"the 95 % interval ({ends}) lies on one side of {claim.neutral}, but this report tests {claim.n_tested} "
        f"differences, and corrected for that (Holm) p is {number(claim.p)}{of_look}."
    )


def _censored(comparison: Comparison, claim: Claim, goal: str) -> list[str]:
    arm, baseline, speedup = comparison.arm, comparison.baseline, comparison.speedup
    n = len(comparison.paired_seeds)
    ratio = _inverse(speedup.restricted)
    bound = "at least " if not speedup.baseline_missed else "at most " if not speedup.arm_missed else ""
    took = f"{bound}{number(ratio.point)} times the steps of {baseline}"
    if n > 1 and claim.direction:
        took = f"{took}, {'sooner' if claim.direction > 0 else 'later'} ({spread(ratio)})."
    elif n > 1:
        took = f"{took}; no difference can be seen: {_why_not(ratio, claim)}"
    else:
        took = f"{took} on the one seed."
    within = " within the steps of the shorter run" if len(comparison.last_steps) > 1 else ""
    return [
        f"{goal[0].upper()}{goal[1:]} was not reached{within} by {speedup.arm_missed} of {count(n, 'seed')} of {arm} "
        f"and by {speedup.baseline_missed} of {n} of {baseline}, so the ratio of steps is not known.",
        f"Counting a run that did not arrive as if it had arrived where the shorter run of its seed ends, {arm} took "
        f"{took}",
    ]


def _area(comparison: Comparison, claim: Claim) -> str:
    arm, baseline, paired = comparison.arm, comparison.baseline, comparison.paired
    if math.isnan(paired.point):
        return f"The runs of {arm} and {baseline} share no range of steps, so their areas cannot be compared."
    subject = f"{arm}'s mean {comparison.metric} over the run"
    if len(comparison.paired_seeds) == 1:
        return f"{subject} minus {baseline}'s was {number(paired.point, signed=True)} on the one seed."
    if claim.direction:
        where = "higher" if claim.direction > 0 else "lower"
        by = f"{number(abs(paired.point))} (difference: {spread(paired, signed=True)})"
        return f"{subject} was {where} than {baseline}'s by {by}."
    return (
        f"{subject} minus {baseline}'s was {number(paired.point, signed=True)}; no difference can be seen: "
        f"{_why_not(paired, claim, signed=True)}"
    )


def _equal_kl(comparison: Comparison, equal: EqualKL | None, claims: Claims) -> list[str]:
    if equal is None or claims.at_kl is None:
        return ["Reward at equal KL cannot be given: KL was not logged in both arms, or did not rise."]
    difference = f"{number(equal.difference.point, signed=True)} ({spread(equal.difference, signed=True)})"
    text = (
        f"At equal KL ({number(equal.kl)} nats a token, the largest that both reach) {equal.arm}'s {comparison.metric} "
        f"minus {equal.baseline}'s was {difference}."
    )
    if len(equal.seeds) < len(comparison.paired_seeds):
        text += f" Only {count(len(equal.seeds), 'seed')} of {len(comparison.paired_seeds)} could be used for this."
    overall, at_kl = claims.overall, claims.at_kl.direction
    if not overall:
        return [text]
    if at_kl == overall:
        return [text, f"So the {'gain' if overall > 0 else 'loss'} is not only a matter of how far the policy moved."]
    effect, penalty = ("gain", "weaker") if overall > 0 else ("loss", "stronger")
    finding = "the difference goes the other way" if at_kl else "no difference can be seen"
    return [text, f"At equal KL {finding}, so the {effect} cannot be told from a {penalty} effective KL penalty."]


def _needed(area: Claim) -> list[str]:
    n = len(area.estimate.values)
    spread = float(np.std(area.estimate.values, ddof=1)) if n > 1 else 0.0
    if not spread or area.direction:
        return []
    needed = seeds_needed(area.estimate.point / spread, area.level)
    seeds = "more than 1,000" if needed is None else f"about {needed:,}"
    visible = number(detectable(n, area.level) * spread)
    return [
        f"At the spread seen here {n} seeds see a difference in area of {visible} four "
        f"times in five; for one of the size seen here that takes {seeds} seeds."
    ]


def _bought(comparison: Comparison) -> list[str]:
    pairing = comparison.pairing
    if pairing is None:
        return []
    ends = interval(pairing.low, pairing.high, signed=True)
    certainty = f", 95 % interval {ends}" if ends else ""
    return [
        f"Pairing by seed: the difference in area has {number(pairing.ratio)} times the variance that it would have "
        f"between runs with seeds of their own (the arms' correlation over {len(comparison.paired.values)} seeds is "
        f"{number(pairing.correlation, signed=True)}{certainty})."
    ]


def _caveats(comparison: Comparison) -> list[str]:
    sentences = []
    rise = comparison.target.rise
    if not comparison.target.explicit and not math.isnan(comparison.target.value) and rise.low <= 0:
        sentences.append(
            f"{comparison.baseline}'s own rise is not clear of 0 over its seeds ({spread(rise, signed=True)}), "
            "so the target lies within its noise."
        )
    if len(comparison.last_steps) > 1:
        ends = ", ".join(number(step) for step in comparison.last_steps)
        sentences.append(
            f"The runs end at different steps ({ends}); areas are compared up to step {number(comparison.span[1])}, "
            "final values at each run's own end."
        )
    return sentences


def _uncounted(comparison: Comparison) -> tuple[str, ...]:
    sentences = []
    for arm, excluded in ((comparison.arm, comparison.n_excluded), (comparison.baseline, comparison.baseline_excluded)):
        if excluded:
            them = "it" if excluded == 1 else "them"
            sentences.append(
                f"{count(excluded, 'run')} of {arm} could not be counted (reasons in the list of runs)."
                + (f" If the arm is the cause, leaving {them} out favours {arm}." if comparison.paired_seeds else "")
            )
    return tuple(sentences)


def _inverse(estimate: Estimate) -> Estimate:
    """Turn baseline's steps / arm's steps into arm's / baseline's: the way people speak of steps."""
    values = tuple(1 / value for value in estimate.values)
    return Estimate(1 / estimate.point, 1 / estimate.high, 1 / estimate.low, values, estimate.p, estimate.level)
