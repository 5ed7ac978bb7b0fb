"""Rules over the rewards and advantages of training."""

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.diagnoses.logged import Logged, components, trained_components
from grpovi_lightning.diagnoses.rule import Evidence, Rule, needs, number, share

FLAT_GROUPS = 0.5
"""Share of groups without variance. Ours: more than half of the sampling is wasted then. That the share grows in
training, and that it pays to replace such groups, is in DAPO, arXiv 2503.14476, Section 3.2."""
DOMINATES = 0.95
"""Share of the variance of the reward within groups. Ours: the other components then move an advantage by less than a
quarter of what this one does (the root of 0.05 / 0.95 is 0.23)."""
LARGE_ADVANTAGE = 10.0
"""Ours: standardised advantages of G completions are at most (G - 1) / sqrt(G), which is below 10 up to G = 101."""
SIGN_FLIPS = 0.4
"""Ours: signs drawn by chance would give 0.5, and the recorded runs of GRPOVI have at most 0.28."""


def _flat_groups(run: Logged) -> Evidence | None:
    flat = run.get(keys.FRAC_REWARD_ZERO_STD)
    found = run.highest(keys.FRAC_REWARD_ZERO_STD, FLAT_GROUPS)
    if flat is None or found is None:
        return None
    high, low = run.get(keys.FRAC_GROUPS_ALL_HIGH), run.get(keys.FRAC_GROUPS_ALL_LOW)
    if high is not None and low is not None:
        split = f"{share(high.between(found))} of all groups all good, {share(low.between(found))} all bad"
    else:
        split = "which of them were all good and which all bad was not logged"
    return Evidence(
        f"{share(found.mean)} of the groups had no two different rewards {found}, and that share of the sampling "
        f"did not tell good from bad: {split}; {share(float(flat.values.mean()))} over all steps",
        found.last,
        found.mean,
    )


def _dominates(run: Logged) -> Evidence | None:
    for name in trained_components(run.series):
        found = run.highest(keys.rewards_variance_share(name), DOMINATES)
        if found:
            return Evidence(
                f"{name} made {share(found.mean)} of the variance of the reward within groups {found}",
                found.last,
                found.mean,
            )
    return None


def _lacks_shares(run: Logged) -> tuple[str, ...]:
    """Nothing is missing where one component alone is trained on."""
    several = len(set(components(run.series)) - set(run.gold)) > 1
    lacking = several and not trained_components(run.series)
    return (keys.rewards_variance_share("<name>"),) if lacking else ()


def _large_advantages(run: Logged) -> Evidence | None:
    largest = run.get(keys.ADVANTAGE_ABS_MAX)
    if largest is None or largest.values.max() <= LARGE_ADVANTAGE:
        return None
    over = largest.steps[largest.values > LARGE_ADVANTAGE]
    return Evidence(
        f"the largest advantage was {number(float(largest.values.max()))}, and over the threshold at {len(over)} of "
        f"{len(largest)} steps, first at step {int(over[0])}",
        int(over[-1]),
        float(largest.values.max()),
    )


def _sign_flips(run: Logged) -> Evidence | None:
    found = run.highest(keys.ADJUSTMENT_SIGN_FLIPS, SIGN_FLIPS) if run.adjusts else None
    return found and Evidence(
        f"the adjustment changed the sign of {share(found.mean)} of the advantages {found}", found.last, found.mean
    )


FLAT = Rule(
    "groups without reward variance",
    _flat_groups,
    needs(keys.FRAC_REWARD_ZERO_STD),
    f"more than {share(FLAT_GROUPS)} of the groups",
    "ours; why it matters: DAPO, arXiv 2503.14476",
    "Use prompts of middling difficulty, a larger group, a finer reward, or `resampling`.",
)
DOMINATED = Rule(
    "a reward component dominates",
    _dominates,
    _lacks_shares,
    f"more than {share(DOMINATES)} of the variance",
    "ours",
    "The other components hardly move the policy: change `reward_weights`, or leave them out.",
)
LARGE_ADVANTAGES = Rule(
    "large advantages",
    _large_advantages,
    needs(keys.ADVANTAGE_ABS_MAX),
    f"above {LARGE_ADVANTAGE:g}",
    "ours",
    "Single completions drive the update: look for outliers of the reward, bound it, or use `scale_rewards: group`.",
)
FLIPPED = Rule(
    "advantages that change sign",
    _sign_flips,
    needs(keys.ADJUSTMENT_SIGN_FLIPS),
    f"more than {share(SIGN_FLIPS)} of the completions",
    "ours",
    "The adjustment punishes what the reward calls good: look at its range and its weights, or how wide its noise is; "
    "`UniformWeights` keep the mean.",
)
