"""Features phi(x, a) of a prompt with a completion: hidden states of a frozen transformer."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.models.sources import Precision, check_checkpoint, load_model, load_tokenizer
from grpovi_lightning.ops import pad_right
from grpovi_lightning.rewards.online.feature_cache import FeatureCache
from grpovi_lightning.rewards.sequences import in_batches, own_precision

_UNUSED_HEADS = ("pooler.dense.weight", "pooler.dense.bias")
"""Weights of encoders' own pooling, which masked-language-model checkpoints lack and nothing here reads."""


class Pooling(ABC):
    """The states of a sequence -> one vector."""

    @abstractmethod
    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """States [b, L, D] of sequences padded at the end, mask [b, L] bool -> [b, D]."""


class LastToken(Pooling):
    """The state at the last token, which is the end token of a completion that ended: all of a causal LM's context."""

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """See `Pooling`."""
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]


class MeanOverTokens(Pooling):
    """The mean of the states over all tokens of prompt and completion."""

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """See `Pooling`."""
        kept = states.masked_fill(~mask[..., None], 0.0)
        return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


class FeatureModel(nn.Module):
    """The last hidden states of a frozen model, pooled; several poolings are put side by side.

    Any checkpoint that `transformers.AutoModel` reads will do: a causal LM, of which the body is taken, a classifier,
    or an encoder. The paper takes the last layer of the model that the reward model starts from (arXiv 2502.07193,
    Section 5): the fine-tuned policy's folder is that here.
    """

    def __init__(
        self,
        path: str,
        poolings: list[Pooling] | None = None,
        dtype: Precision = "float32",
        batch_size: int = 64,
        cache: str | None = None,
    ) -> None:
        """Names the checkpoint; `load` reads it.

        Args:
            path: local checkpoint folder, or a hub name.
            poolings: how a sequence's states become its features; default `[LastToken()]`.
            dtype: dtype of the weights; features are float32.
            batch_size: sequences run at once, sorted by length.
            cache: file that keeps features on disk, for sequences that come again, as those of a table do; it is made
                where it does not exist. None: nothing is kept.
        """
        super().__init__()
        if batch_size < 1:
            raise UserError(f"feature model batch_size: got {batch_size}, expected at least 1")
        if poolings is not None and not poolings:
            raise UserError("feature model poolings: got none, expected at least one such as LastToken")
        self.path, self.batch_size = path, batch_size
        self.poolings = [LastToken()] if poolings is None else poolings
        self.dtype: Precision = dtype
        self.model: PreTrainedModel | None = None
        self.cache = None if cache is None else FeatureCache(cache)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._fingerprint: str | None = None

    def check(self) -> None:
        """Raises `UserError` for a checkpoint that is not there, before anything is loaded."""
        check_checkpoint(self.path, "feature model")

    def load(self) -> None:
        """Loads model and tokenizer once."""
        if self.model is None:
            with _without_load_report():
                self.model = load_model(AutoModel, self.path, self.dtype, _UNUSED_HEADS)
            self.model.requires_grad_(False).eval()
            self._tokenizer = load_tokenizer(self.path)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer; `load` comes first."""
        assert self._tokenizer is not None, "load() comes before reading"
        return self._tokenizer

    @property
    def dim(self) -> int:
        """D, the number of features."""
        assert self.model is not None, "load() comes before dim"
        return self.model.config.get_text_config().hidden_size * len(self.poolings)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and of how their states are pooled: equal where the features are."""
        if self._fingerprint is None:
            assert self.model is not None, "load() comes before fingerprint"
            digest = hashlib.sha256(repr([type(pooling).__qualname__ for pooling in self.poolings]).encode())
            for name, weights in sorted(self.model.state_dict().items()):
                digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
                digest.update(weights.cpu().contiguous().view(torch.uint8).numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def forward(self, rows: list[list[int]]) -> Tensor:
        """Token lists -> features, [B, D] float32 on the CPU; those in the cache are read from it.

        Equal rows have equal features to the last bit, so that a completion that was sampled twice is known as such.

        Raises:
            TrainingError: a feature is not finite.
        """
        if not rows:
            return torch.zeros(0, self.dim)
        if self.cache is not None:
            return self.cache.fetch(self.fingerprint, rows, self.dim, self._compute)
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
    """Inside, `transformers` does not warn of a head that is left behind, which is what is meant here."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
