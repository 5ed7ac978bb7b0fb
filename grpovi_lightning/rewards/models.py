"""Rewards from a learned sequence classifier."""

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.distributed import sum_over_ranks
from grpovi_lightning.errors import TrainingError, at_least_one
from grpovi_lightning.models.chat import check_chat_template
from grpovi_lightning.models.classifiers import check_classifier, load_classifier, pools_last_token
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.models.published_heads import PublishedHead
from grpovi_lightning.models.sources import Precision
from grpovi_lightning.models.truncation import PromptCut
from grpovi_lightning.ops import pad_right
from grpovi_lightning.randomness import HELD_OUT_STEP
from grpovi_lightning.rewards.base import Reward, RewardUpdate
from grpovi_lightning.rewards.sequences import SequenceReader, in_batches, own_precision
from grpovi_lightning.structures import Rollout

REWARD_STATISTICS = {"reward_mean": 0.0, "reward_std": 1.0}
"""Names in a reward model's `config.json`, and their defaults."""

_log = logging.getLogger(__name__)


class RewardModel(Reward):
    """A Hugging Face sequence classifier, frozen; of one label, or of several of which one is named.

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
        head: str | None = None,
        label: int | str | None = None,
        truncate: Literal["prompt"] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Name the checkpoint; `load` reads it.

        Args:
            path: local checkpoint folder, or a hub name.
            name: the name under which the score is logged.
            dtype: dtype of the weights.
            batch_size: sequences scored at once, sorted by length.
            head: the linear layer in the checkpoint that gives the score from the last token's state, such as `v_head`,
                where the checkpoint is no sequence classifier.
            label: the label whose logit is the score, by number or name, where there are several.
            truncate: what happens to a sequence that is longer than the model reads. None: it is an error. `prompt`:
                the left part of its prompt is cut off; how many were cut is logged.
            chat_template: through which it reads conversations: a Jinja file, or `plain` for the bare contents of the
                messages; None: its tokenizer's own.

        Raises:
            UserError: `batch_size` is below 1.
        """
        super().__init__()
        at_least_one("reward model ", batch_size=batch_size)
        self.path, self.name, self.batch_size, self.chat_template = path, name, batch_size, chat_template
        self.dtype: Precision = dtype
        self.published, self.truncate = PublishedHead(head, label), truncate
        self.model: PreTrainedModel | None = None
        self.reader: SequenceReader | None = None
        self.cut: PromptCut | None = None
        self._n_cut: Counter[int] = Counter()
        """Step -> sequences of this rank that were cut and not logged yet."""

    def weights(self) -> dict[str, float]:
        return {self.name: 1.0}

    def check(self) -> None:
        check_classifier(self.path, published=self.published)
        check_chat_template(self.chat_template)

    def load(self, policy_tokenizer: PreTrainedTokenizerBase | None) -> None:
        if self.model is None:
            self.model, tokenizer = load_classifier(
                self.path, self.dtype, chat_template=self.chat_template, published=self.published
            )
            self.model.requires_grad_(False).eval()
            limits = InputLimits(self.model, tokenizer, self.model.config.pad_token_id)
            if self.truncate is not None:
                self.cut, limits = PromptCut(limits, tokenizer), limits.of_any_length()
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
        rows = self._rows(rollout)
        with own_precision(self.model):
            scores = in_batches(rows, self.batch_size, partial(classifier_scores, self.model))
        mean, std = (getattr(self.model.config, name, default) for name, default in REWARD_STATISTICS.items())
        scores = (scores - mean) / std
        for i in (~scores.isfinite()).nonzero().flatten().tolist():
            prompt = rollout.prompts.texts[i // rollout.group_size]
            raise TrainingError(
                f"reward model {self.path}: score {scores[i]} for a completion of {prompt[:60]!r}, expected a finite "
                "number; look at the checkpoint, its `reward_std` and its dtype"
            )
        return {self.name: scores}

    def _rows(self, rollout: Rollout) -> list[list[int]]:
        assert self.reader is not None, "load() comes before scoring"
        rows, texts = self.reader.rows(rollout), rollout.prompts.texts
        if self.cut is None:
            return rows
        rows, count = self.cut(
            rows, rollout.texts, lambda i: f"a completion of prompt {texts[i // rollout.group_size][:60]!r}"
        )
        if count and not self._n_cut:
            _log.warning(
                f"reward model {self.path}: {count} of {len(rows)} sequences are longer than the {self.cut.longest} "
                "tokens that it reads; the left part of their prompts is cut off, and their number is logged as "
                f"{keys.rewards_truncated(self.name)}"
            )
        self._n_cut[rollout.step] += count
        return rows

    def learn(self, rollout: Rollout, seed: int, stopping: Callable[[], bool] = lambda: False) -> RewardUpdate:
        """Return how many sequences of the step were cut; the model stays as it is."""
        return RewardUpdate(self._count_of(rollout.step))

    def progress(self) -> dict[str, float]:
        return self._count_of(HELD_OUT_STEP)

    def _count_of(self, step: int) -> dict[str, float]:
        """Return the sequences of a step that were cut, over all ranks, since the last call."""
        if self.cut is None:
            return {}
        assert self.model is not None, "load() comes before scoring"
        of_rank, self._n_cut[step] = torch.tensor(float(self._n_cut[step]), device=self.model.device), 0
        return {keys.rewards_truncated(self.name): float(sum_over_ranks(of_rank))}


def classifier_scores(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """Return the logits [B] float32 of a one-label classifier for B token lists; padding stands at the end."""
    ids, mask = pad_right(rows, model.config.pad_token_id or 0)
    ids, mask = ids.to(model.device), mask.to(model.device)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
    if not pools_last_token(model):
        return model(**inputs).logits.squeeze(-1).float()
    logits = model.score(model.base_model(**inputs).last_hidden_state)  # type: ignore[operator]
    return logits[torch.arange(len(rows), device=ids.device), mask.sum(dim=1) - 1].squeeze(-1).float()
