"""A Bradley-Terry reward model."""

from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.conversations import answer_text
from grpovi_lightning.data.modules import TextPairs
from grpovi_lightning.errors import UserError
from grpovi_lightning.models.adapters import LoRA, has_adapters
from grpovi_lightning.models.chat import check_chat_template
from grpovi_lightning.models.classifiers import check_classifier, head_parameters, load_classifier
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.models.merging import merged
from grpovi_lightning.models.saving import save_checkpoint
from grpovi_lightning.models.sources import Precision
from grpovi_lightning.models.truncation import PromptCut
from grpovi_lightning.modules.evaluation import held_out_names
from grpovi_lightning.modules.held_out_pairs import HeldOutPairs, calibration, pair_accuracy
from grpovi_lightning.modules.logging import log_held_out
from grpovi_lightning.modules.optimizers import check_optimizer, optimizer_setup, refuse_float16
from grpovi_lightning.modules.pair_pictures import show_pictures
from grpovi_lightning.modules.settings import refuse_sharding
from grpovi_lightning.modules.supervised import SupervisedModule
from grpovi_lightning.modules.tables import check_tables
from grpovi_lightning.rewards.models import REWARD_STATISTICS, classifier_scores
from grpovi_lightning.rewards.sequences import pair_rows
from grpovi_lightning.trainer_state import data_of


class RewardModelModule(SupervisedModule):
    """Maximum likelihood under Bradley-Terry: -log sigmoid(r(chosen) - r(rejected)).

    Where the data names a column of margins m, it is -log sigmoid(r(chosen) - r(rejected) - m) (arXiv 2307.09288). With
    label smoothing e, the share e of the labels counts as wrong: (1 - e) times that, plus e times -log sigmoid of the
    opposite. Held-out losses have neither, so that they can be compared.

    A small penalty on (r(chosen) + r(rejected))^2 centres the rewards, which the likelihood leaves free
    (arXiv 2312.09244). At every evaluation the mean and the standard deviation of the held-out scores are
    taken; they are saved with the model as `reward_mean` and `reward_std`, and `RewardModel` returns
    standardised rewards.

    A model that starts from a causal LM scores by the last token, the end token: `reward_pooling` in its `config.json`
    says so. One that starts from an encoder scores by its first token, as `transformers` has it. A classifier keeps the
    pooling that its head was trained with.
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
        lora: LoRA | None = None,
        label_smoothing: float = 0.0,
        truncate: Literal["prompt"] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Describe the model and its training.

        Args:
            path: checkpoint to start from: a causal LM or an encoder (they get a new head), or a one-label classifier.
            dtype: dtype of the weights.
            centering_coefficient: weight of the centring penalty, at least 0.
            head_only: trains the head on the features of the body, which stays as it is.
            lora: adapters to train instead of the body's weights, beside the head; the exported model has them merged
                in.
            label_smoothing: the share of labels taken to be wrong, from 0 up to less than 1/2.
            truncate: what happens to a sequence that is longer than the model reads. None: it is an error. `prompt`:
                the left part of its prompt is cut off; the log says of how many.
            optimizer: called with the parameters that are trained.
            lr_scheduler: called with the optimizer; stepped once per update.
            chat_template: through which it reads conversations, now and as it is exported: a Jinja file, or `plain` for
                the bare contents of the messages; None: its tokenizer's own.
        """
        super().__init__()
        if centering_coefficient < 0:
            raise UserError(f"centering_coefficient: got {centering_coefficient}, expected at least 0")
        if not 0.0 <= label_smoothing < 0.5:
            raise UserError(f"label_smoothing: got {label_smoothing}, expected at least 0 and less than 0.5")
        if head_only and lora is not None:
            raise UserError("lora: got it with head_only, which trains no part of the body; leave one of the two out")
        self.path, self.lora, self.truncate, self.chat_template = path, lora, truncate, chat_template
        self.label_smoothing = label_smoothing
        self.weight_dtype: Precision = dtype
        self.centering_coefficient, self.head_only = centering_coefficient, head_only
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.held_out = HeldOutPairs()
        self.cut: PromptCut | None = None

    def check_inputs(self) -> None:
        """Raise `UserError` for a checkpoint that is not there or cannot be trained, before anything is loaded."""
        check_classifier(self.path, new_head=True)
        check_chat_template(self.chat_template)
        if self.lora is not None:
            self.lora.check()

    def check_settings(self, trainer: L.Trainer, data: L.LightningDataModule) -> None:
        """Raise `UserError` for settings that cannot work together, before anything is loaded."""
        refuse_float16("trainer.precision", trainer.precision)
        refuse_float16("dtype", self.weight_dtype)
        refuse_sharding(self, trainer)
        check_optimizer(self.optimizer, self.lr_scheduler)

    def configure_model(self) -> None:
        """Load the model, once.

        Raises:
            UserError: it cannot be loaded, or a row of a table is too long for it.
        """
        if not hasattr(self, "model"):
            self.model, self.tokenizer = load_classifier(self.path, self.weight_dtype, True, self.chat_template)
            self.limits = InputLimits(self.model, self.tokenizer, self.model.config.pad_token_id)
            self.cut = None if self.truncate is None else PromptCut(self.limits, self.tokenizer)
            self._freeze()
        counts: list[int] = []

        def encode(batch: TextPairs) -> list[list[int]]:
            rows, n_cut = self._rows(batch)
            counts.append(n_cut)
            return rows

        check_tables(data_of(self), self.limits, encode)
        if any(counts):
            self.print(
                f"reward model {self.path}: {sum(counts)} sequences of the tables are longer than the "
                f"{self.limits.positions} tokens that it reads; the left part of their prompts is cut off"
            )

    def _freeze(self) -> None:
        """Leave the head to be trained, and of the body what the settings say."""
        if self.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # so that all runs start with the same adapters
                self.lora.add_to(self.model, "SEQ_CLS")
            for parameter in head_parameters(self.model):
                parameter.requires_grad_(True)
        elif self.head_only:
            self.model.base_model.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return optimizer_setup(self.model.parameters(), self.optimizer, self.lr_scheduler)

    def training_step(self, batch: TextPairs, batch_idx: int) -> Tensor:
        """Return the mean loss over the pairs of a batch, nats, weighted by its part of the update.

        The means over the pairs of the whole update are logged.
        """
        chosen, rejected = self._scores(batch)
        logits = chosen - rejected
        if "margin" in batch:
            logits = logits - torch.tensor(batch["margin"], device=logits.device)
        # log sigmoid(-x) = log sigmoid(x) - x
        loss = (self.label_smoothing * logits - logsigmoid(logits)).mean()
        centring = (chosen + rejected).square().mean()
        means = torch.stack([loss.detach(), pair_accuracy(chosen, rejected).mean()])
        loss, logged = self.weighted(loss + self.centering_coefficient * centring, means, len(chosen), batch)
        shown = dict(zip((keys.LOSS, keys.PAIR_ACCURACY), logged, strict=True))
        self.log_dict(shown, prog_bar=True, batch_size=len(chosen))
        return loss

    def validation_step(self, batch: TextPairs, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score held-out pairs; of several held-out sets each is a subset by its name."""
        name = held_out_names(self.trainer)[dataloader_idx]
        subsets = [name] * len(batch["chosen"]) if name else batch.get("subset", ())
        tokens: Any = self.tokenizer(_answers(batch), add_special_tokens=False)["input_ids"]
        chosen, rejected = torch.tensor([len(row) for row in tokens], device=self.device).chunk(2)
        self.held_out.update(*self._scores(batch), (chosen, rejected), subsets)

    def on_validation_epoch_end(self) -> None:
        """Log held-out statistics and pictures, and keep the scores' mean and spread for the checkpoint."""
        pairs = self.held_out.pair_scores()
        metrics = self.held_out.compute() | {
            keys.CALIBRATION_ERROR: calibration(pairs.chosen, pairs.rejected).error,
            keys.LENGTH_CORRELATION: pairs.length_correlation,
        }
        log_held_out(self, metrics, self.trainer.global_step, shown=[keys.PAIR_ACCURACY])
        prefix = keys.TEST_PREFIX if self.trainer.testing else keys.EVAL_PREFIX
        show_pictures(self, pairs, prefix, self.trainer.global_step)
        mean, std = self.held_out.moments()
        if self.trainer.validating and std > 0.0:
            self.model.config.reward_mean, self.model.config.reward_std = mean, std
        self.held_out.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _scores(self, batch: TextPairs) -> tuple[Tensor, Tensor]:
        rows, _ = self._rows(batch)
        self.limits.check(rows, _places(batch))
        chosen, rejected = classifier_scores(self.model, rows).chunk(2)
        return chosen, rejected

    def _rows(self, batch: TextPairs) -> tuple[list[list[int]], int]:
        """Return the token lists of the chosen and then of the rejected completions, and how many were cut."""
        rows = pair_rows(self.tokenizer, batch)
        return (rows, 0) if self.cut is None else self.cut(rows, _answers(batch), _places(batch))

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
        model = merged(self.model) if has_adapters(self.model) else self.model
        save_checkpoint(model, self.tokenizer, folder)


def _answers(batch: TextPairs) -> list[str]:
    """Return the texts of the chosen and then of the rejected completions."""
    return [answer_text(answer) for side in ("chosen", "rejected") for answer in batch[side]]


def _places(batch: TextPairs) -> Callable[[int], str]:
    """Return what says where a completion of `_answers` is, for messages."""
    prompts = batch["prompt"]
    return lambda i: f"a completion of prompt {str(prompts[i % len(prompts)])[:60]!r}"
