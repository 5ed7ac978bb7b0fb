"""Supervised fine-tuning: the starting policy."""

from collections import defaultdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.data.modules import TextPairs
from grpovi_lightning.models import CausalLMSource, LanguageModel, Sharding
from grpovi_lightning.modules.evaluation import by_set, check_set_names, held_out_names
from grpovi_lightning.modules.logging import log_held_out
from grpovi_lightning.modules.optimizers import check_optimizer, optimizer_setup, refuse_float16
from grpovi_lightning.modules.supervised import SupervisedModule
from grpovi_lightning.modules.tables import check_tables
from grpovi_lightning.ops import masked_sum, pad_right, position_ids, token_statistics
from grpovi_lightning.trainer_state import data_of, precision_of


class SFTModule(SupervisedModule):
    """Next-token likelihood of demonstrated completions; prompt tokens carry no loss.

    Of conversations, what the assistant says in the completion carries loss: its turns with the token that ends each.
    The loss is the mean over the completion tokens of an update, the end token included, in nats: of all batches that
    `trainer.accumulate_grad_batches` gathers, on all processes.
    """

    policy: LanguageModel
    """Loaded by `configure_model`."""

    def __init__(
        self,
        policy: CausalLMSource,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        train_on_prompts: bool = False,
    ) -> None:
        """Compose the training.

        Args:
            policy: the model to train.
            optimizer: called with its parameters.
            lr_scheduler: called with the optimizer; stepped once per update.
            train_on_prompts: whether all tokens of a row but its first carry loss, those of the prompt and of other
                roles, too.
        """
        super().__init__()
        self.policy_source, self.optimizer, self.lr_scheduler = policy, optimizer, lr_scheduler
        self.train_on_prompts = train_on_prompts
        self.held_out_losses: defaultdict[int, MeanMetric] = defaultdict(MeanMetric)
        """Place of a held-out set -> the loss of its tokens so far."""

    def check_inputs(self) -> None:
        """Raise `UserError` for a checkpoint that is not there, before anything is loaded."""
        self.policy_source.check()

    def check_settings(self, trainer: L.Trainer, data: L.LightningDataModule) -> None:
        """Raise `UserError` for settings that cannot work together, before anything is loaded."""
        refuse_float16("trainer.precision", trainer.precision)
        refuse_float16("policy.dtype", self.policy_source.dtype)
        check_optimizer(self.optimizer, self.lr_scheduler)
        check_set_names(data)

    def configure_model(self) -> None:
        """Load the policy, once.

        Raises:
            UserError: it cannot be loaded, or a row of a table is too long for it.
        """
        if not hasattr(self, "policy"):
            self.policy = self.policy_source.load()
        Sharding("layers").spread(self.policy, self.device_mesh, precision_of(self))
        check_tables(data_of(self), self.policy.limits, lambda batch: [ids for ids, _ in self._rows(batch)])

    def configure_optimizers(self) -> Any:
        return optimizer_setup(self.policy.parameters(), self.optimizer, self.lr_scheduler)

    def training_step(self, batch: TextPairs, batch_idx: int) -> Tensor:
        """Return the mean loss over the completion tokens of a batch, nats, weighted by its part of the update.

        The mean over the tokens of the whole update is logged.
        """
        total, count = self._loss(batch)
        mean = total / count
        loss, (logged,) = self.weighted(mean, mean[None], int(count), batch)
        self.log(keys.LOSS, logged, prog_bar=True, batch_size=int(count))
        return loss

    def validation_step(self, batch: TextPairs, batch_idx: int, dataloader_idx: int = 0) -> None:
        total, count = self._loss(batch)
        self.held_out_losses[dataloader_idx].to(total.device).update(total / count, weight=count)

    def on_validation_epoch_end(self) -> None:
        names = held_out_names(self.trainer)
        found = [{keys.LOSS: float(self.held_out_losses[which].compute())} for which in range(len(names))]
        log_held_out(self, by_set(names, found), self.trainer.global_step, [keys.LOSS])
        self.held_out_losses.clear()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _rows(self, batch: TextPairs) -> list[tuple[list[int], list[bool]]]:
        """Return the tokens of each prompt with its completion, end token included, and which carry loss."""
        rows = self.policy.demonstrations(batch["prompt"], batch["completion"])
        return [(ids, [True] * len(ids)) for ids, _ in rows] if self.train_on_prompts else rows

    def _loss(self, batch: TextPairs) -> tuple[Tensor, Tensor]:
        pairs = self._rows(batch)
        rows = [ids for ids, _ in pairs]
        self.policy.limits.check(rows, lambda i: f"prompt {str(batch['prompt'][i])[:60]!r} with its completion")
        ids, mask = (part.to(self.policy.device) for part in pad_right(rows, self.policy.pad_token_id))
        trained = pad_right([list(map(int, said)) for _, said in pairs], 0)[0].bool().to(ids.device)
        trained = trained[:, 1:]  # nothing predicts a row's first token
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": position_ids(mask)}
        logits = self.policy(self.policy.model, **inputs, use_cache=False).logits
        logprobs = token_statistics(logits[:, :-1], ids[:, 1:]).logprobs
        return -masked_sum(logprobs, trained), trained.sum()

    def save_pretrained(self, folder: str) -> None:
        """Write the model and its tokenizer as a Hugging Face checkpoint folder."""
        self.policy.save_pretrained(folder)
