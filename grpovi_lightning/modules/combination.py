"""What of a reward, an adjustment and an advantage does not go together."""

from grpovi_lightning.adjustment import Adjustment
from grpovi_lightning.advantages import Advantage, shown_range
from grpovi_lightning.concrete import is_concrete
from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards import Reward


def check_combination(group_size: int, reward: Reward, adjustment: Adjustment, advantage: Advantage) -> None:
    """Refuse groups without anything to compare, what cannot take effect, and rewards that an advantage cannot take.

    Raises:
        UserError: names the two that do not go together, or what is no method or reward by itself.
    """
    for part in (reward, adjustment, advantage):
        if not is_concrete(type(part)):
            raise UserError(f"{type(part).__name__}: got the base class, expected one of its kinds; see grpovi methods")
    for name in reward.weights():
        if not name:
            raise UserError("reward: got no name, expected a word, which its logged scalars begin with; set `name`")
    if group_size < 2:
        raise UserError(
            f"group_size: got {group_size}, expected at least 2; the advantage of a completion is its reward "
            "relative to its group"
        )
    kind = type(adjustment).__name__
    if group_size == 2 and advantage.standardised and not adjustment.changes_pairs:
        raise UserError(
            f"{kind} cannot take effect: got group_size 2 with scale_rewards group, "
            "where standardised advantages are +-1 whatever the rewards; use larger groups or scale_rewards none"
        )
    if adjustment.only_scales and advantage.ignores_scale:
        raise UserError(
            f"{kind} cannot take effect: got {type(advantage).__name__}, whose advantages are divided by the spread of "
            "the rewards; use GroupAdvantage with scale_rewards none, or another advantage that is not scaled"
        )
    bounds, (lowest, highest) = adjustment.bounds(reward.bounds), advantage.domain
    if bounds is not None and not lowest <= bounds[0] <= bounds[1] <= highest:
        raise UserError(
            f"{type(advantage).__name__}: got {shown_range(bounds)} ({type(reward).__name__}, {kind}), expected "
            f"{shown_range(advantage.domain)}; take another reward, or an adjustment such as RangeOnly with a "
            "SigmoidRange"
        )
