"""What the numbers say, in plain words that read the same with the two arms exchanged.

A difference is called only where the bootstrap interval *and* the t interval exclude "no difference". With three
seeds the bootstrap interval of a mean is the range of the seeds, so it excludes 0 by chance one time in four.
"""

import math
from dataclasses import dataclass

from analysis.efficiency import Comparison
from analysis.reward_kl import EqualKL
from analysis.statistics import Estimate, seeds_needed
from analysis.wording import count, interval, number, spread


@dataclass(frozen=True)
class Verdict:
    """The words for one comparison: the headline answers the question; then one sentence or two a quantity."""

    arm: str
    baseline: str
    headline: str
    sentences: tuple[str, ...]

    @property
    def question(self) -> str:
        """What the comparison asks."""
        return f"Is {self.arm} faster than {self.baseline}?"


def verdict_of(comparison: Comparison, equal_kl: EqualKL | None) -> Verdict:
    """Write the verdict of an arm against its baseline.

    Args:
        comparison: Must have a baseline.
        equal_kl: The same pair at equal KL, if KL was logged.
    """
    assert comparison.baseline is not None, "an arm that stands alone has no verdict"
    headline = f"No verdict on {comparison.arm} against {comparison.baseline}: no seed counts in both arms."
    sentences: list[str] = []
    if comparison.paired_seeds:
        headline = _headline(comparison)
        sentences = [*_steps(comparison), _area(comparison), *_equal_kl(comparison, equal_kl)]
        sentences += [*_needed(comparison), *_caveats(comparison)]
    return Verdict(comparison.arm, comparison.baseline, headline, (*sentences, *_uncounted(comparison)))


def _direction(estimate: Estimate, neutral: float) -> int:
    """+1 or -1 where both intervals lie above or below `neutral`, else 0."""
    if math.isnan(estimate.point) or not estimate.excludes(neutral):
        return 0
    return 1 if estimate.point > neutral else -1


def _one_sided(comparison: Comparison) -> int:
    """+1 where on every paired seed only the arm reached the target, -1 where only the baseline did, else 0."""
    n = len(comparison.paired_seeds)
    if comparison.speedup.already_there or n < 2:
        return 0
    return 1 if comparison.speedup.only_arm == n else -1 if comparison.speedup.only_baseline == n else 0


def _headline(comparison: Comparison) -> str:
    arm, baseline = comparison.arm, comparison.baseline
    n = len(comparison.paired_seeds)
    if n == 1:
        return f"{arm} against {baseline}: one seed only, so nothing can be said about other seeds."
    lost = comparison.n_excluded + comparison.baseline_excluded
    seeds = f", on the {n} seeds that count in both" if lost else ""
    steps = _direction(comparison.speedup.estimate, 1.0)
    area = _direction(comparison.paired, 0.0)
    if steps * area < 0:
        soon, high = ("sooner", "lower") if steps > 0 else ("later", "higher")
        return f"Mixed: {arm} reached the target {soon} than {baseline}, but its reward over the run was {high}{seeds}."
    if steps:
        return f"{arm} is {'faster' if steps > 0 else 'slower'} than {baseline}{seeds}."
    sided = _one_sided(comparison)
    if sided:
        one, two = (arm, baseline) if sided > 0 else (baseline, arm)
        speed = "faster" if sided > 0 else "slower"
        return f"{arm} is {speed} than {baseline}: on all {n} seeds only {one} reached the target, {two} did not."
    if area:
        return f"{arm}'s reward over the run is {'higher' if area > 0 else 'lower'} than {baseline}'s{seeds}."
    speedup = comparison.speedup
    if speedup.only_arm != speedup.only_baseline:
        missed = f"{arm} missed the target on {speedup.only_baseline + speedup.neither} of {n} seeds, "
        missed += f"{baseline} on {speedup.only_arm + speedup.neither}"
        return f"No difference between {arm} and {baseline} is certain with {n} seeds, but {missed}."
    return f"No difference between {arm} and {baseline} can be seen with {n} seeds."


def _steps(comparison: Comparison) -> list[str]:
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
        return _censored(comparison, goal)
    if len(comparison.paired_seeds) == 1:
        return [f"{arm} took {number(ratio.point)} times the steps of {baseline} to {goal} on the one seed."]
    direction = _direction(speedup.estimate, 1.0)
    if direction:
        when = "sooner" if direction > 0 else "later"
        return [
            f"{arm} reached {goal} {when} than {baseline}: {number(ratio.point)} times the steps ({spread(ratio)})."
        ]
    return [
        f"No difference in the steps to {goal} can be seen: {arm} took {number(ratio.point)} times the steps of "
        f"{baseline}; {_why_not(ratio, 1)}"
    ]


def _why_not(estimate: Estimate, neutral: int, *, signed: bool = False) -> str:
    low, high = estimate.low, estimate.high
    ends = interval(low, high, signed=signed)
    if low <= neutral <= high:
        return f"the 95 % interval ({ends}) contains {neutral}."
    t_ends = interval(estimate.t_low, estimate.t_high, signed=signed)
    return (
        f"the bootstrap interval ({ends}) lies on one side of {neutral}, but from {len(estimate.values)} seeds it is "
        f"too narrow to rely on, and the t interval ({t_ends}) contains {neutral}."
    )


def _censored(comparison: Comparison, goal: str) -> list[str]:
    arm, baseline, speedup = comparison.arm, comparison.baseline, comparison.speedup
    n = len(comparison.paired_seeds)
    arm_missed = speedup.only_baseline + speedup.neither
    baseline_missed = speedup.only_arm + speedup.neither
    sentences = [
        f"{goal[0].upper()}{goal[1:]} was not reached by {arm_missed} of {count(n, 'seed')} of {arm} and by "
        f"{baseline_missed} of {n} of {baseline}, so the ratio of steps is not known."
    ]
    for bound, words in ((speedup.at_most, "at least"), (speedup.at_least, "at most")):
        if not math.isnan(bound):
            sentences.append(
                f"Counting a run that did not arrive as if it had arrived at its last step, {arm} took {words} "
                f"{number(1 / bound)} times the steps of {baseline} on these seeds."
            )
    return sentences


def _area(comparison: Comparison) -> str:
    arm, baseline, paired = comparison.arm, comparison.baseline, comparison.paired
    if math.isnan(paired.point):
        return f"The runs of {arm} and {baseline} share no range of steps, so their areas cannot be compared."
    subject = f"{arm}'s mean {comparison.metric} over the run"
    if len(comparison.paired_seeds) == 1:
        return f"{subject} minus {baseline}'s was {number(paired.point, signed=True)} on the one seed."
    direction = _direction(paired, 0.0)
    if direction:
        where = "higher" if direction > 0 else "lower"
        by = f"{number(abs(paired.point))} (difference: {spread(paired, signed=True)})"
        return f"{subject} was {where} than {baseline}'s by {by}."
    return (
        f"{subject} minus {baseline}'s was {number(paired.point, signed=True)}; no difference can be seen: "
        f"{_why_not(paired, 0, signed=True)}"
    )


def _equal_kl(comparison: Comparison, equal: EqualKL | None) -> list[str]:
    if equal is None:
        return ["Reward at equal KL cannot be given: KL was not logged in both arms, or did not rise."]
    difference = f"{number(equal.difference.point, signed=True)} ({spread(equal.difference, signed=True)})"
    text = (
        f"At equal KL ({number(equal.kl)} nats a token, the largest that both reach) {equal.arm}'s {comparison.metric} "
        f"minus {equal.baseline}'s was {difference}."
    )
    if len(equal.seeds) < len(comparison.paired_seeds):
        text += f" Only {count(len(equal.seeds), 'seed')} of {len(comparison.paired_seeds)} could be used for this."
    overall = _direction(comparison.speedup.estimate, 1.0) or _direction(comparison.paired, 0.0)
    at_kl = _direction(equal.difference, 0.0)
    if not overall:
        return [text]
    if at_kl == overall:
        return [text, f"So the {'gain' if overall > 0 else 'loss'} is not only a matter of how far the policy moved."]
    effect, penalty = ("gain", "weaker") if overall > 0 else ("loss", "stronger")
    finding = "the difference goes the other way" if at_kl else "no difference can be seen"
    return [text, f"At equal KL {finding}, so the {effect} cannot be told from a {penalty} effective KL penalty."]


def _needed(comparison: Comparison) -> list[str]:
    paired = comparison.paired
    n = len(paired.values)
    if n < 2 or paired.point == 0 or _direction(paired, 0.0):
        return []
    needed = seeds_needed(paired.values)
    seeds = "more than 1,000" if needed is None else f"about {max(needed, n + 1):,}"
    return [f"At the spread seen here, {seeds} seeds would be needed to see a difference in area of this size."]


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
    point, low, high = 1 / estimate.point, 1 / estimate.high, 1 / estimate.low
    return Estimate(point, low, high, values, t_low=1 / estimate.t_high, t_high=1 / estimate.t_low)
