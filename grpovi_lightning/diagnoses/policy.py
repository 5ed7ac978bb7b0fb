"""Rules over the policy: lengths, entropy, KL, clipping."""

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.diagnoses.logged import Logged
from grpovi_lightning.diagnoses.rule import Evidence, Rule, needs, number, share
from grpovi_lightning.diagnoses.series import FEWEST

LENGTH_CORRELATION = 0.5
"""Rank correlation of reward and length, either way. Cohen's "large" (Statistical Power Analysis, 1988, Section 3.2).
How often a learned reward follows length: Singhal et al., arXiv 2310.03716."""
LENGTH_CHANGE = 0.1
"""Share by which the mean length must have moved that way. Ours: a correlation that moves no length is harmless."""
CUT_OFF = 0.5
"""Share of completions without an end token. Ours: most rewards are then given for fragments."""
ENTROPY_LEFT = 0.25
"""Share of the entropy at the start. Ours: recorded runs that still learned kept over 0.4, one that came to give the
same answer to every question 0.18. What a collapse costs: Cui et al., arXiv 2505.22617; DAPO, arXiv 2503.14476."""
KL = 1.0
"""Nats a token. Ours: a token is then e times as probable as under the initial policy, on (geometric) average; in the
recorded runs above it the gold reward fell, stood still, or was exploited."""
CLIPPED = 0.5
"""Share of tokens whose ratio is clipped. Ours: most tokens then have no gradient. What is usual depends on the loss:
GSPO clips two orders of magnitude more of them than GRPO, and learns (arXiv 2507.18071)."""


def _length_follows_reward(run: Logged) -> Evidence | None:
    correlation, length = run.get(keys.LENGTH_REWARD_CORRELATION), run.get(keys.COMPLETIONS_MEAN_LENGTH)
    if correlation is None or length is None:
        return None
    found = correlation.highest(LENGTH_CORRELATION) or correlation.lowest(-LENGTH_CORRELATION)
    if found is None:
        return None
    last = length.stretch(len(length) - min(FEWEST, len(length)), min(FEWEST, len(length)))
    change = last.mean / length.first - 1
    if change * found.mean <= 0 or abs(change) <= LENGTH_CHANGE:
        return None
    return Evidence(
        f"reward and length had a rank correlation of {number(found.mean)} {found}, and the mean length went from "
        f"{number(length.first)} to {number(last.mean)} tokens",
        found.last,
        found.mean,
    )


def _cut_off(run: Logged) -> Evidence | None:
    found = run.highest(keys.COMPLETIONS_CLIPPED_RATIO, CUT_OFF)
    return found and Evidence(
        f"{share(found.mean)} of the completions were cut off at the length limit {found}", found.last, found.mean
    )


def _entropy_collapsed(run: Logged) -> Evidence | None:
    entropy = run.get(keys.ENTROPY)
    if entropy is None:
        return None
    found = entropy.lowest(ENTROPY_LEFT * entropy.first)
    return found and Evidence(
        f"the entropy fell from {number(entropy.first)} nats a token to {number(found.mean)} {found}",
        found.last,
        found.mean / entropy.first,
    )


def _kl_ran_away(run: Logged) -> Evidence | None:
    for name in (keys.KL, keys.held_out(keys.KL)):
        found = run.highest(name, KL)
        if found:
            return Evidence(f"{name} was {number(found.mean)} nats a token {found}", found.last, found.mean)
    return None


def _lacks_kl(run: Logged) -> tuple[str, ...]:
    return () if run.get(keys.KL) or run.get(keys.held_out(keys.KL)) else (keys.KL,)


def _clipped(run: Logged) -> Evidence | None:
    found = run.highest(keys.CLIP_RATIO_REGION_MEAN, CLIPPED)
    return found and Evidence(
        f"the ratio of {share(found.mean)} of the tokens was clipped {found}", found.last, found.mean
    )


LENGTH = Rule(
    "length follows reward",
    _length_follows_reward,
    needs(keys.LENGTH_REWARD_CORRELATION, keys.COMPLETIONS_MEAN_LENGTH),
    f"a rank correlation beyond {LENGTH_CORRELATION:g}, and lengths that moved by more than {share(LENGTH_CHANGE)}",
    "Cohen 1988 (correlation), ours (length)",
    "The policy may be learning length instead of what is meant: read completions, and take length out of the reward.",
)
CUT = Rule(
    "completions cut off",
    _cut_off,
    needs(keys.COMPLETIONS_CLIPPED_RATIO),
    f"more than {share(CUT_OFF)} of the completions",
    "ours",
    "Raise `max_completion_length`, reward brevity, or set `mask_truncated_completions`.",
)
ENTROPY = Rule(
    "entropy collapse",
    _entropy_collapsed,
    needs(keys.ENTROPY),
    f"below {ENTROPY_LEFT:g} of the start",
    "ours; what it costs: Cui et al., arXiv 2505.22617, and DAPO, arXiv 2503.14476",
    "The policy hardly explores any more: raise `epsilon_high` or beta, lower the learning rate, or sample at a higher "
    "temperature.",
)
KL_RUN_AWAY = Rule(
    "KL run-away",
    _kl_ran_away,
    _lacks_kl,
    f"above {KL:g} nat a token",
    "ours",
    "The policy is far from where it began: raise beta, lower the learning rate, and read completions.",
)
CLIPPED_RATIOS = Rule(
    "clipped ratios",
    _clipped,
    needs(keys.CLIP_RATIO_REGION_MEAN),
    f"more than {share(CLIPPED)} of the tokens",
    "ours",
    "Updates go further than clipping allows: lower the learning rate, or make fewer updates of a rollout.",
)
