"""Supervised fine-tuning: the starting policy."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.data.modules import TextPairs
from grpovi_lightning.distributed import mean_over_ranks
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.modules.checkpoints import FrozenLeftOut
from grpovi_lightning.modules.logging import log_held_out
from grpovi_lightning.modules.optimizers import optimizer_setup
from grpovi_lightning.ops import masked_sum, pad_right, position_ids, token_statistics


class SFTModule(FrozenLeftOut):
    """Next-token likelihood of demonstrated completions; prompt tokens carry no loss.

    The loss is the mean over the completion tokens of the batch, the end token included, in nats.
    """

    policy: LanguageModel
    """Loaded by `configure_model`."""

    def __init__(
        self,
        policy: CausalLMSource,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Compose the training.

        Args:
            policy: the model to train.
            optimizer: called with its parameters.
            lr_scheduler: called with the optimizer; stepped once per update.
        """
        super().__init__()
        self.policy_source, self.optimizer, self.lr_scheduler = policy, optimizer, lr_scheduler
        self.held_out_loss = MeanMetric()

    def check_inputs(self) -> None:
        """Raise `UserError` for a checkpoint that is not there, before anything is loaded."""
        self.policy_source.check()

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            self.policy = self.policy_source.load()

    def configure_optimizers(self) -> Any:
        return optimizer_setup(self.policy.parameters(), self.optimizer, self.lr_scheduler)

    def training_step(self, batch: TextPairs, batch_idx: int) -> Tensor:
        """Return the mean loss over the completion tokens of a batch, nats; log that over the tokens of all ranks."""
        total, count = self._loss(batch)
        loss = total / count
        self.log(keys.LOSS, mean_over_ranks(loss.detach(), count), prog_bar=True, batch_size=int(count))
        return loss

    def validation_step(self, batch: TextPairs, batch_idx: int) -> None:
        total, count = self._loss(batch)
        self.held_out_loss.update(total / count, weight=count)

    def on_validation_epoch_end(self) -> None:
        log_held_out(self, {keys.LOSS: float(self.held_out_loss.compute())}, self.trainer.global_step, [keys.LOSS])
        self.held_out_loss.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _loss(self, batch: TextPairs) -> tuple[Tensor, Tensor]:
        ids, mask, is_completion = encode_pairs(self.policy, batch["prompt"], batch["completion"])
        logits = self.policy.model(
            input_ids=ids, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False
        ).logits
        logprobs = token_statistics(logits[:, :-1], ids[:, 1:]).logprobs
        return -masked_sum(logprobs, is_completion[:, 1:]), is_completion.sum()

    def save_pretrained(self, folder: str) -> None:
        """Write the model and its tokenizer as a Hugging Face checkpoint folder."""
        self.policy.save_pretrained(folder)


def encode_pairs(model: LanguageModel, prompts: list[str], completions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Encode prompt, completion and end token as one right-padded sequence.

    Returns:
        ids [B, L], mask [B, L] bool, and [B, L] bool: which tokens belong to the completion.
    """
    encoded_prompts, prompt_mask = model.encode_prompts(prompts)
    prompt_rows = [ids[kept].tolist() for ids, kept in zip(encoded_prompts, prompt_mask, strict=True)]
    end = model.end_token_ids[0]
    completion_rows = [[*row, end] for row in model.encode(completions)]
    rows = list(zip(prompt_rows, completion_rows, strict=True))
    ids, mask = pad_right([p + c for p, c in rows], model.pad_token_id)
    is_completion = pad_right([[0] * len(p) + [1] * len(c) for p, c in rows], 0)[0].bool()
    return ids.to(model.device), mask.to(model.device), is_completion.to(model.device)
