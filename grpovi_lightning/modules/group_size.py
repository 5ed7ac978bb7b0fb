"""Groups that are too small for what is asked of them."""

from grpovi_lightning.adjustment import Adjustment
from grpovi_lightning.advantages import Advantage
from grpovi_lightning.errors import UserError


def check_group_size(group_size: int, advantage: Advantage, adjustment: Adjustment) -> None:
    """Raise `UserError` for groups without anything to compare, or too small for the adjustment to change anything."""
    if group_size < 2:
        raise UserError(
            f"group_size: got {group_size}, expected at least 2; the advantage of a completion is its reward "
            "relative to its group"
        )
    if group_size == 2 and advantage.standardised and not adjustment.changes_pairs:
        raise UserError(
            f"{type(adjustment).__name__} cannot take effect: got group_size 2 with scale_rewards group, "
            "where standardised advantages are +-1 whatever the rewards; use larger groups or scale_rewards none"
        )
