"""A Bradley-Terry reward model."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.data.modules import TextPairs
from grpovi_lightning.errors import UserError
from grpovi_lightning.models.chat import check_chat_template
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.models.saving import save_checkpoint
from grpovi_lightning.models.sources import Precision, check_checkpoint, load_classifier
from grpovi_lightning.modules.held_out_pairs import HeldOutPairs, pair_accuracy
from grpovi_lightning.modules.logging import log_held_out
from grpovi_lightning.modules.optimizers import optimizer_setup, refuse_float16
from grpovi_lightning.modules.supervised import SupervisedModule
from grpovi_lightning.modules.tables import check_tables
from grpovi_lightning.rewards.models import REWARD_STATISTICS, classifier_scores
from grpovi_lightning.rewards.sequences import pair_rows


class RewardModelModule(SupervisedModule):
    """Maximum likelihood under Bradley-Terry: -log sigmoid(r(chosen) - r(rejected)).

    A small penalty on (r(chosen) + r(rejected))^2 centres the rewards, which the likelihood leaves free
    (arXiv 2312.09244). At every evaluation the mean and the standard deviation of the held-out scores are
    taken; they are saved with the model as `reward_mean` and `reward_std`, and `RewardModel` returns
    standardised rewards.

    A model that starts from a causal LM scores by the last token, the end token: `reward_pooling` in its `config.json`
    says so. A classifier keeps the pooling that its head was trained with.
    """

    model: PreTrainedModel
    """Loaded by `configure_model`, with its tokenizer."""
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        path: str,
        dtype: Precision = "float32",
        centering_coefficient: float = 0.01,
        head_only: bool = False,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Describe the model and its training.

        Args:
            path: checkpoint to start from: a causal LM (it gets a new head) or a one-label classifier.
            dtype: dtype of the weights.
            centering_coefficient: weight of the centring penalty, at least 0.
            head_only: trains the linear head on the features of the body, which stays as it is.
            optimizer: called with the parameters that are trained.
            lr_scheduler: called with the optimizer; stepped once per update.
            chat_template: through which it reads conversations, now and as it is exported: a Jinja file, or `plain` for
                the bare contents of the messages; None: its tokenizer's own.
        """
        super().__init__()
        if centering_coefficient < 0:
            raise UserError(f"centering_coefficient: got {centering_coefficient}, expected at least 0")
        self.path, self.chat_template = path, chat_template
        self.weight_dtype: Precision = dtype
        self.centering_coefficient, self.head_only = centering_coefficient, head_only
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.held_out = HeldOutPairs()

    def check_inputs(self) -> None:
        """Raise `UserError` for a checkpoint that is not there, before anything is loaded."""
        check_checkpoint(self.path, "reward model")
        check_chat_template(self.chat_template)

    def check_settings(self, trainer: L.Trainer, data: L.LightningDataModule) -> None:
        """Raise `UserError` for settings that cannot work together, before anything is loaded."""
        refuse_float16("trainer.precision", trainer.precision)
        refuse_float16("dtype", self.weight_dtype)

    def configure_model(self) -> None:
        """Load the model, once.

        Raises:
            UserError: it cannot be loaded, or a row of a table is too long for it.
        """
        if not hasattr(self, "model"):
            self.model, self.tokenizer = load_classifier(self.path, self.weight_dtype, True, self.chat_template)
            self.limits = InputLimits(self.model, self.tokenizer, self.model.config.pad_token_id)
            if self.head_only:
                self.model.base_model.requires_grad_(False)
        check_tables(self, self.limits, lambda batch: pair_rows(self.tokenizer, batch))

    def configure_optimizers(self) -> Any:
        return optimizer_setup(self.model.parameters(), self.optimizer, self.lr_scheduler)

    def training_step(self, batch: TextPairs, batch_idx: int) -> Tensor:
        """Return the mean loss over the pairs of a batch, nats, weighted by its part of the update.

        The means over the pairs of the whole update are logged.
        """
        chosen, rejected = self._scores(batch)
        loss = -logsigmoid(chosen - rejected).mean()
        centring = (chosen + rejected).square().mean()
        means = torch.stack([loss.detach(), pair_accuracy(chosen, rejected).mean()])
        loss, logged = self.weighted(loss + self.centering_coefficient * centring, means, len(chosen), batch)
        shown = dict(zip((keys.LOSS, keys.PAIR_ACCURACY), logged, strict=True))
        self.log_dict(shown, prog_bar=True, batch_size=len(chosen))
        return loss

    def validation_step(self, batch: TextPairs, batch_idx: int) -> None:
        self.held_out.update(*self._scores(batch))

    def on_validation_epoch_end(self) -> None:
        """Log held-out accuracy, loss and margin, and keep the scores' mean and spread for the checkpoint."""
        log_held_out(self, self.held_out.compute(), self.trainer.global_step, shown=[keys.PAIR_ACCURACY])
        mean, std = self.held_out.moments()
        if self.trainer.validating and std > 0.0:
            self.model.config.reward_mean, self.model.config.reward_std = mean, std
        self.held_out.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _scores(self, batch: TextPairs) -> tuple[Tensor, Tensor]:
        rows, prompts = pair_rows(self.tokenizer, batch), batch["prompt"]
        self.limits.check(rows, lambda i: f"a completion of prompt {str(prompts[i % len(prompts)])[:60]!r}")
        chosen, rejected = classifier_scores(self.model, rows).chunk(2)
        return chosen, rejected

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the scores' mean and spread, too: a run that goes on after its last evaluation exports them."""
        super().on_save_checkpoint(checkpoint)
        config = self.model.config
        checkpoint["statistics"] = {key: getattr(config, key) for key in REWARD_STATISTICS if hasattr(config, key)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for name, value in checkpoint.get("statistics", {}).items():
            setattr(self.model.config, name, value)

    def save_pretrained(self, folder: str) -> None:
        """Write the classifier and its tokenizer as a Hugging Face checkpoint folder."""
        save_checkpoint(self.model, self.tokenizer, folder)
