"""Features phi(x, a) of a prompt with a completion: hidden states of a frozen transformer."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from grpovi_lightning.errors import TrainingError, UserError, at_least_one
from grpovi_lightning.models.chat import check_chat_template
from grpovi_lightning.models.encoding import name_end_token
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.models.sources import Precision, check_checkpoint, load_model, load_tokenizer
from grpovi_lightning.ops import pad_right
from grpovi_lightning.rewards.online.feature_cache import FeatureCache
from grpovi_lightning.rewards.sequences import in_batches, own_precision

_UNUSED_HEADS = ("pooler.dense.weight", "pooler.dense.bias")
"""Weights of encoders' own pooling, which masked-language-model checkpoints lack and nothing here reads."""


class Pooling(ABC):
    """Pools the hidden states of a sequence into one vector."""

    @abstractmethod
    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool states [b, L, D] of sequences padded at the end, mask [b, L] bool -> [b, D]."""


class LastToken(Pooling):
    """The state at the last token, where a causal LM has read all others: the end token, if the completion ended.

    >>> LastToken()(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[3.0]]
    """

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]


class MeanOverTokens(Pooling):
    """The mean of the states over all tokens of prompt and completion.

    >>> MeanOverTokens()(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[2.0]]
    """

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        kept = states.masked_fill(~mask[..., None], 0.0)
        return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


class FeatureModel(nn.Module):
    """The last hidden states of a frozen model, pooled; the results of several poolings stand side by side.

    Any checkpoint that `transformers.AutoModel` reads will do: a classifier, an encoder, or a causal LM without its
    head. The paper takes the last layer of the model that the reward model starts from (arXiv 2502.07193, Section 5).
    Here that is the folder of the fine-tuned policy.
    """

    def __init__(
        self,
        path: str,
        poolings: list[Pooling] | None = None,
        dtype: Precision = "float32",
        batch_size: int = 64,
        cache: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Name the checkpoint; `load` reads it.

        Args:
            path: local checkpoint folder, or a hub name.
            poolings: how a sequence's states become its features; default `[LastToken()]`.
            dtype: dtype of the weights; features are float32.
            batch_size: sequences run at once, sorted by length.
            cache: file that keeps features on disk, for sequences that come again, such as those of a table; made where
                it does not exist. None: nothing is kept.
            chat_template: through which it reads conversations: a Jinja file, or `plain` for the bare contents of the
                messages; None: its tokenizer's own.

        Raises:
            UserError: `batch_size` is below 1, or `poolings` is empty.
        """
        super().__init__()
        at_least_one("feature model ", batch_size=batch_size)
        if poolings is not None and not poolings:
            raise UserError("feature model poolings: got none, expected at least one such as LastToken")
        self.path, self.batch_size, self.chat_template = path, batch_size, chat_template
        self.poolings = [LastToken()] if poolings is None else poolings
        self.dtype: Precision = dtype
        self.model: PreTrainedModel | None = None
        self.cache = None if cache is None else FeatureCache(cache)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._limits: InputLimits | None = None

    def check(self) -> None:
        """Raise `UserError` for a checkpoint that is not there, before anything is loaded."""
        check_checkpoint(self.path, "feature model")
        check_chat_template(self.chat_template)

    def load(self) -> None:
        """Load model and tokenizer; a second call does nothing."""
        if self.model is None:
            with _without_load_report():
                self.model = load_model(AutoModel, self.path, self.dtype, _UNUSED_HEADS)
            self.model.requires_grad_(False).eval()
            self._tokenizer = load_tokenizer(self.path, self.chat_template)
            name_end_token(self._tokenizer, self.model)
            self._limits = InputLimits(self.model, self._tokenizer, None)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, once it is loaded."""
        assert self._tokenizer is not None, "load() comes before reading"
        return self._tokenizer

    @property
    def limits(self) -> InputLimits:
        """Which token lists the model can read, once it is loaded."""
        assert self._limits is not None, "load() comes before reading"
        return self._limits

    @property
    def dim(self) -> int:
        """D, the number of features."""
        assert self.model is not None, "load() comes before dim"
        return self.model.config.get_text_config().hidden_size * len(self.poolings)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of the poolings, in hexadecimal: equal fingerprints give equal features."""
        assert self.model is not None, "load() comes before fingerprint"
        digest = hashlib.sha256(repr([type(pooling).__qualname__ for pooling in self.poolings]).encode())
        for name, weights in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
            digest.update(weights.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def forward(self, rows: list[list[int]]) -> Tensor:
        """Return features [B, D] of B token lists, float32 on the CPU; those in the cache are read from it.

        Equal rows have equal features to the last bit, by which a completion that was sampled twice is recognised.

        Raises:
            UserError: the model cannot read a row.
            TrainingError: a feature is not finite.
        """
        if not rows:
            return torch.zeros(0, self.dim)
        self.limits.check(rows, lambda i: f"sequence {i}")
        if self.cache is not None:
            return self.cache.fetch(self.fingerprint, rows, self.dim, self._compute)
        # Each distinct row is computed once: copies in two batches could differ in their last bits.
        places: dict[tuple[int, ...], int] = {}
        for row in rows:
            places.setdefault(tuple(row), len(places))
        return self._compute([list(row) for row in places])[[places[tuple(row)] for row in rows]]

    @torch.no_grad()
    def _compute(self, rows: list[list[int]]) -> Tensor:
        assert self.model is not None, "load() comes before features"
        with own_precision(self.model):
            features = in_batches(rows, self.batch_size, self._pooled).cpu()
        if not bool(features.isfinite().all()):
            raise TrainingError(
                f"feature model {self.path}: a feature is not finite; look at the checkpoint and its dtype"
            )
        return features

    def _pooled(self, rows: list[list[int]]) -> Tensor:
        assert self.model is not None, "load() comes before features"
        ids, mask = pad_right(rows, self.model.config.get_text_config().pad_token_id or 0)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        return torch.cat([pooling(states, mask) for pooling in self.poolings], dim=1)


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep `transformers` from warning of a head that is left out, as it is here on purpose."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
