"""Settings of GRPO that cannot work together."""

import lightning as L

from grpovi_lightning.adjustment import Adjustment
from grpovi_lightning.advantages import Advantage
from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import CausalLMSource
from grpovi_lightning.selection import PromptSelection


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


def check_compiled(compile_passes: bool, policy: CausalLMSource) -> None:
    """Raise `UserError` for passes that are compiled and keep fewer activations, too."""
    if compile_passes and getattr(policy, "gradient_checkpointing", False):
        raise UserError(
            "compile_passes: got it with gradient_checkpointing, under which updates cannot run a prompt once for "
            "its group; leave one of the two out"
        )


def check_prompts_handed_out(resampling: PromptSelection, data: L.LightningDataModule) -> None:
    """Raise `UserError` if spare prompts are handed out that nothing uses, or data lacks what is needed."""
    spare, name = getattr(data, "spare_per_step", 0), type(resampling).__name__
    if resampling.needs_spare != (spare > 0):
        raise UserError(
            f"spare_prompts_per_step: got {spare} with resampling {name}; neither has an effect without the other: "
            "set both or none"
        )
    if resampling.looks_up and not isinstance(data, PromptDataModule):
        raise UserError(
            f"{name}: got the data module {type(data).__name__}, expected a PromptDataModule, whose prompts can be "
            "asked for by their numbers"
        )
