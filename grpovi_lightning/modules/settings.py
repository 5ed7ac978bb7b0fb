"""Settings of GRPO that cannot work together."""

import lightning as L

from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import CausalLMSource
from grpovi_lightning.selection import PromptSelection


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
