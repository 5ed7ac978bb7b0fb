"""Rules over the course of the reward: over-optimisation, and a plateau."""

from collections.abc import Callable

import numpy as np

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.diagnoses.logged import Logged
from grpovi_lightning.diagnoses.rule import Evidence, Rule, number
from grpovi_lightning.diagnoses.series import Series, Stretch, at_common_steps

FEWEST_EVALUATIONS = 6
FEWEST_STEPS = 30
"""Measurements without which the course of a curve over evaluations, or over training steps, is not judged."""

GOLD_FALLS_BY = 0.1
"""Share of the gold reward's own span. Ours: less is not worth going back for. That a gold reward rises and then falls
while its proxy goes on rising is the pattern of Gao, Schulman and Hilton, arXiv 2210.10760, Figure 1."""
STANDARD_ERRORS = 3.0
"""How far a fall must exceed its standard error. Ours: the best of some windows is too good by chance, so that the
usual two would be too few."""
GOLD_PER_REWARD = 0.1
"""How far the gold reward must rise for each unit of the reward, both in standard deviations over completions at the
start. Ours: a proxy that knows anything of the gold reward gives more; a correlation of 0.3 would give 0.3 (the
regressional Goodhart effect, arXiv 2210.10760, Section 4.2)."""
PLATEAU = 0.05
"""Share of the reward's span by which it must rise in the second half. Ours: a run that learns at an even rate has 0.5,
one that saturates exponentially over five time constants 0.08."""

_SCOPES: tuple[Callable[[str], str], ...] = (keys.held_out, str)
"""Held-out prompts first; the gold reward of training prompts is not trained on either."""


def _over_optimised(run: Logged) -> Evidence | None:
    for name in run.gold:
        for scope in _SCOPES:
            reward, gold = _course(run, scope(keys.REWARD)), _course(run, scope(keys.rewards_mean(name)))
            if reward is None or gold is None:
                continue
            names = scope(keys.REWARD), scope(keys.rewards_mean(name))
            pair = at_common_steps(reward, gold)
            if len(pair[0]) < FEWEST_EVALUATIONS:
                continue
            evidence = _falls(*pair, *names) or _stays(run, name, *pair, *names)
            if evidence is not None:
                return Evidence(evidence.text, evidence.step, evidence.value, best_step(run))
    return None


def _falls(reward: Series, gold: Series, reward_name: str, gold_name: str) -> Evidence | None:
    """Compare the last quarter with the best quarter before it."""
    n = len(gold)
    size = max(2, n // 4)
    peak = int(gold.means(size)[: n - 2 * size + 1].argmax())
    best, last = gold.stretch(peak, size), gold.stretch(n - size, size)
    fall, rise = best.mean - last.mean, reward.between(last) - reward.between(best)
    error = np.sqrt(2 / size)  # of the difference of two such means, by the noise of one value
    if fall <= max(STANDARD_ERRORS * error * gold.noise, GOLD_FALLS_BY * gold.span) or rise <= 2 * error * reward.noise:
        return None
    return Evidence(
        f"{gold_name} fell from {number(best.mean)} {best} to {number(last.mean)} {last}, while {reward_name} rose "
        f"from {number(reward.between(best))} to {number(reward.between(last))}",
        last.last,
        fall,
    )


def _stays(run: Logged, name: str, reward: Series, gold: Series, reward_name: str, gold_name: str) -> Evidence | None:
    """Compare the last quarter with the beginning, in units of the spread over the initial policy's completions."""
    spread = run.get(keys.REWARD_BATCH_STD)
    gold_spread = run.get(keys.rewards_std(name)) or run.get(keys.held_out(keys.rewards_std(name)))
    if spread is None or gold_spread is None:
        return None
    n = len(gold)
    size = max(2, n // 4)
    unit, gold_unit = spread.first, gold_spread.first
    last = gold.stretch(n - size, size)
    rise = reward.between(last) - float(reward.values[0])
    gold_rise = last.mean - float(gold.values[0])
    error = np.sqrt(1 + 1 / size)
    if unit <= 0 or gold_unit <= 0 or rise <= max(unit, STANDARD_ERRORS * error * reward.noise):
        return None
    at_most = gold_rise + 2 * error * gold.noise
    ratio = (at_most / gold_unit) / (rise / unit)
    if ratio >= GOLD_PER_REWARD:
        return None
    return Evidence(
        f"{reward_name} rose by {number(rise / unit)} standard deviations over completions, {gold_name} by "
        f"{number(gold_rise / gold_unit)} of its own: from {number(float(gold.values[0]))} at step "
        f"{int(gold.steps[0])} to {number(last.mean)} {last}",
        last.last,
        ratio,
    )


def best_step(run: Logged) -> int | None:
    """Return the step of the best held-out evaluation, by the gold reward where there is one; None without any."""
    for key in [*map(keys.rewards_mean, run.gold), keys.REWARD]:
        series = run.get(keys.held_out(key))
        if series is not None:
            return int(series.steps[series.values.argmax()])
    return None


def _plateau(run: Logged) -> Evidence | None:
    for name in (scope(keys.REWARD) for scope in _SCOPES):
        series = _course(run, name)
        if series is None:
            continue
        n, size = len(series), max(2, len(series) // 4)
        middle, last = series.stretch(n // 2 - size + 1, size), series.stretch(n - size, size)
        rise = last.mean - middle.mean
        if rise >= PLATEAU * series.span:
            return None
        return Evidence(_of_plateau(name, middle, last), last.last, rise, best_step(run))
    return None


def _of_plateau(name: str, middle: Stretch, last: Stretch) -> str:
    return f"{name} was {number(middle.mean)} {middle} and {number(last.mean)} {last}"


def _course(run: Logged, tag: str) -> Series | None:
    """Return a curve that is long enough to judge its course; None where there is none."""
    series = run.get(tag)
    fewest = FEWEST_EVALUATIONS if tag.startswith(keys.EVAL_PREFIX) else FEWEST_STEPS
    return series if series is not None and len(series) >= fewest else None


def _lacks_a_course(run: Logged) -> tuple[str, ...]:
    return () if any(_course(run, scope(keys.REWARD)) for scope in _SCOPES) else (keys.held_out(keys.REWARD),)


def _lacks_gold(run: Logged) -> tuple[str, ...]:
    names = run.gold or ("<observed>",)
    for scope in _SCOPES:
        if _course(run, scope(keys.REWARD)) and any(_course(run, scope(keys.rewards_mean(name))) for name in names):
            return ()
    return tuple(keys.held_out(keys.rewards_mean(name)) for name in names)


OVER_OPTIMISED = Rule(
    "over-optimisation",
    _over_optimised,
    _lacks_gold,
    f"a fall by more than {GOLD_FALLS_BY:g} of its span and {STANDARD_ERRORS:g} standard errors, or a rise of less "
    f"than {GOLD_PER_REWARD:g} for each unit of the reward",
    "pattern: Gao et al., arXiv 2210.10760; numbers: ours",
    "The policy exploits the reward: go back to the best evaluation, stop there, raise beta or lower the learning "
    "rate, and mend the reward.",
)
PLATEAU_REACHED = Rule(
    "plateau",
    _plateau,
    _lacks_a_course,
    f"a rise of less than {PLATEAU:g} of its span in the second half",
    "ours",
    "Further steps cost time and bring nothing: take the best evaluation, or change the learning rate, the prompts or "
    "the reward.",
    at_end=True,
)
