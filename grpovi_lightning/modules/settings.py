"""Settings of GRPO that cannot work together."""

from typing import Any

import lightning as L

from grpovi_lightning.adjustment import SequenceWeights, UniformWeights, VarianceIncrease
from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import CausalLMSource
from grpovi_lightning.modules.optimizers import check_optimizer, refuse_float16
from grpovi_lightning.rollout import GroupDecoder, PlainDecoder, VLLMDecoder
from grpovi_lightning.selection import EveryPrompt, PromptSelection
from grpovi_lightning.trainer_state import shards


def usual_counterfactual(needs_reference: bool) -> VarianceIncrease:
    """Return the variance increase that a run shows beside its own adjustment where none is named."""
    return VarianceIncrease(SequenceWeights() if needs_reference else UniformWeights())


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


def check_surroundings(module: Any, trainer: L.Trainer, data: L.LightningDataModule) -> None:
    """Raise `UserError` for settings of a GRPO module that cannot work with the trainer's or the data's."""
    module.updater.check(trainer, data)
    refuse_float16("policy.dtype", module.policy_source.dtype)
    check_optimizer(module.optimizer, module.lr_scheduler, with_closure=False)
    check_prompts_handed_out(module.resampling, data)
    check_drawn_ahead(module, data)
    check_processes(module, trainer, data)
    module.held_out.check(data)


def check_drawn_ahead(module: Any, data: L.LightningDataModule) -> None:
    """Raise `UserError` for settings under which nothing can be drawn ahead, or nothing corrects for it."""
    if not module.engine.decoder.draws_ahead:
        return
    if module.updater.settings.importance_sampling is None:
        raise UserError(
            "OneStepAhead: got no importance_sampling, but completions come from weights that are one step old; leave "
            "importance_sampling_cap at a number, or set updates.importance_sampling"
        )
    if not isinstance(module.resampling, EveryPrompt):
        name = type(module.resampling).__name__
        raise UserError(f"OneStepAhead: got resampling {name}, which chooses prompts at each step; use VLLMServer")
    if not isinstance(data, PromptDataModule):
        raise UserError(
            f"OneStepAhead: got the data module {type(data).__name__}, expected a PromptDataModule, which can be asked "
            "for the prompts of the next step"
        )


def check_processes(module: Any, trainer: L.Trainer, data: L.LightningDataModule) -> None:
    """Raise `UserError` for settings of a GRPO module that cannot work with its processes, or with shared weights."""
    module.engine.decoder.check_processes(trainer.world_size)
    module.sharding.check(shards(trainer))
    if not shards(trainer):
        return
    if module.compile_passes:
        raise UserError("compile_passes: got it with strategy fsdp2, whose weights it cannot gather; leave it out")
    if type(module.engine.decoder) not in (GroupDecoder, PlainDecoder, VLLMDecoder):
        name = type(module.engine.decoder).__name__
        raise UserError(f"decoder: got {name} with strategy fsdp2, whose weights it cannot gather; use GroupDecoder")
    if getattr(module.policy_source, "quantization", None) is not None:
        raise UserError("policy.quantization: got it with strategy fsdp2, which cannot spread such weights; use ddp")
    if trainer.world_size > 1 and getattr(data, "validation_batch_size", 2) == 1:
        raise UserError(
            "data.validation_batch_size: got 1 with strategy fsdp2, under which all processes evaluate the same number "
            "of batches; set at least 2"
        )


def refuse_sharding(module: L.LightningModule, trainer: L.Trainer) -> None:
    """Raise `UserError` for a strategy that leaves the sharding to a module that does none."""
    if shards(trainer):
        raise UserError(
            f"trainer.strategy: got fsdp2 for a {type(module).__name__}, whose weights are not sharded; use ddp"
        )
