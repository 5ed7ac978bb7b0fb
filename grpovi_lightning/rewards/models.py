"""Rewards from a learned sequence classifier."""

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.errors import TrainingError, at_least_one
from grpovi_lightning.models.chat import check_chat_template
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.models.sources import Precision, check_checkpoint, load_classifier, pools_last_token
from grpovi_lightning.ops import pad_right
from grpovi_lightning.rewards.base import Reward
from grpovi_lightning.rewards.sequences import SequenceReader, in_batches, own_precision
from grpovi_lightning.structures import Rollout

REWARD_STATISTICS = {"reward_mean": 0.0, "reward_std": 1.0}
"""Names in a reward model's `config.json`, and their defaults."""


class RewardModel(Reward):
    """A Hugging Face sequence classifier with one label, frozen.

    Learned rewards have an arbitrary origin and scale, so the score is (logit - mean) / std, by `reward_mean` and
    `reward_std` in the checkpoint's `config.json` (default 0 and 1). The model reads prompt and completion as one
    sequence, see `SequenceReader`.
    """

    def __init__(
        self,
        path: str,
        name: str = "reward_model",
        dtype: Precision = "float32",
        batch_size: int = 16,
        chat_template: str | None = None,
    ) -> None:
        """Name the checkpoint; `load` reads it.

        Args:
            path: local checkpoint folder, or a hub name.
            name: the name under which the score is logged.
            dtype: dtype of the weights.
            batch_size: sequences scored at once, sorted by length.
            chat_template: through which it reads conversations: a Jinja file, or `plain` for the bare contents of the
                messages; None: its tokenizer's own.

        Raises:
            UserError: `batch_size` is below 1.
        """
        super().__init__()
        at_least_one("reward model ", batch_size=batch_size)
        self.path, self.name, self.batch_size, self.chat_template = path, name, batch_size, chat_template
        self.dtype: Precision = dtype
        self.model: PreTrainedModel | None = None
        self.reader: SequenceReader | None = None

    def weights(self) -> dict[str, float]:
        return {self.name: 1.0}

    def check(self) -> None:
        check_checkpoint(self.path, "reward model")
        check_chat_template(self.chat_template)

    def load(self, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        if self.model is None:
            self.model, tokenizer = load_classifier(self.path, self.dtype, chat_template=self.chat_template)
            self.model.requires_grad_(False).eval()
            limits = InputLimits(self.model, tokenizer, self.model.config.pad_token_id)
            self.reader = SequenceReader(tokenizer, policy_tokenizer, limits)

    def readers(self) -> list[SequenceReader]:
        return [] if self.reader is None else [self.reader]

    @torch.no_grad()
    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """Score the B completions.

        Raises:
            TrainingError: a score is not finite: a classifier can score every completion, so its weights are broken.
        """
        assert self.model is not None and self.reader is not None, "load() comes before scoring"
        with own_precision(self.model):
            scores = in_batches(self.reader.rows(rollout), self.batch_size, partial(classifier_scores, self.model))
        mean, std = (getattr(self.model.config, name, default) for name, default in REWARD_STATISTICS.items())
        scores = (scores - mean) / std
        for i in (~scores.isfinite()).nonzero().flatten().tolist():
            prompt = rollout.prompts.texts[i // rollout.group_size]
            raise TrainingError(
                f"reward model {self.path}: score {scores[i]} for a completion of {prompt[:60]!r}, expected a finite "
                "number; look at the checkpoint, its `reward_std` and its dtype"
            )
        return {self.name: scores}


def classifier_scores(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """Return the logits [B] float32 of a one-label classifier for B token lists; padding stands at the end."""
    ids, mask = pad_right(rows, model.config.pad_token_id or 0)
    ids, mask = ids.to(model.device), mask.to(model.device)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
    if not pools_last_token(model):
        return model(**inputs).logits.squeeze(-1).float()
    logits = model.score(model.base_model(**inputs).last_hidden_state)  # type: ignore[operator]
    return logits[torch.arange(len(rows), device=ids.device), mask.sum(dim=1) - 1].squeeze(-1).float()
