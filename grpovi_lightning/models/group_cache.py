"""Key-value caches in which a prompt stands once for all completions of its group.

`PrefixLayer` keeps the prompt of each group. For training, `ExpandedLayer` puts completions behind it in one
concatenation. For decoding, `GroupLayer` keeps the completions beside it, in memory that is reserved once, and computes
the attention to both parts without ever copying the prompt: the completions of a group are the rows of one matrix
product with its keys. Models reach it through the attention interface of `transformers`, as `GROUP_ATTENTION`.

Shapes: Q query heads, K key-value heads, R = Q / K, D the size of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

GROUP_ATTENTION = "grpovi_group"

_active: ContextVar["Cache | None"] = ContextVar("active", default=None)


class UnsupportedAttentionError(Exception):
    """The model computes its attention in a way that cannot be done group by group."""


class PrefixLayer(DynamicLayer):
    """Keys and values of prompts, [P, K, S, D], all of them: a sliding window is the mask's business here."""


class ExpandedLayer(DynamicLayer):
    """The same prompts for `members` completions each, [P * members, K, S + T, D]; nothing is copied but once."""

    def __init__(self, prefix: PrefixLayer, members: int) -> None:
        """Takes the prompts' layer."""
        super().__init__()
        self.keys, self.values = prefix.keys, prefix.values
        self.members, self.is_initialized = members, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Puts completions [P * members, K, T, D] behind their prompts, once."""
        assert self.keys is not None and self.values is not None
        self.keys = _behind(self.keys, key_states, self.members)
        self.values = _behind(self.values, value_states, self.members)
        return self.keys, self.values


def _behind(prompts: Tensor, completions: Tensor, members: int) -> Tensor:
    prefix = prompts.unsqueeze(1).expand(-1, members, -1, -1, -1)
    return torch.cat([prefix, completions.unflatten(0, (-1, members))], dim=-2).flatten(0, 1)


class GroupLayer(DynamicLayer):
    """One layer's keys and values while decoding: prompts [P, K, S, D], and completions [P, K, G, length, D].

    It holds the last of `length` tokens without growing; each step writes one column.
    """

    def __init__(self, prefix: PrefixLayer, members: int, length: int) -> None:
        """Reserves the memory."""
        super().__init__()
        assert prefix.keys is not None and prefix.values is not None
        self.prompt_keys, self.prompt_values = prefix.keys, prefix.values
        self.prompt_length = prefix.keys.shape[2]
        groups, heads = prefix.keys.shape[:2]
        self.keys = prefix.keys.new_empty((groups, heads, members, length, prefix.keys.shape[-1]))
        self.values = prefix.values.new_empty((groups, heads, members, length, prefix.values.shape[-1]))
        self.is_initialized = True
        self.n_tokens = 0
        self._passed: Tensor | None = None

    def get_seq_length(self) -> int:
        """Prompt and completion tokens so far, padding included."""
        return self.prompt_length + self.n_tokens

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes the next token of every completion, [P * G, K, 1, D], and hands the arguments back.

        The model passes them on to `group_attention`, which takes what it needs from here.
        """
        assert self.keys is not None and self.values is not None
        groups, members = self.keys.shape[0], self.keys.shape[2]
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            store[:, :, :, self.n_tokens] = states.squeeze(2).unflatten(0, (groups, members)).transpose(1, 2)
        self.n_tokens += 1
        self._passed = key_states
        return key_states, value_states

    def keep(self, groups: Tensor, members: Tensor) -> None:
        """Keeps some completions: `members` [P', G'] of the groups [P']."""
        assert self.keys is not None and self.values is not None
        self.prompt_keys, self.prompt_values = self.prompt_keys[groups], self.prompt_values[groups]
        for name in ("keys", "values"):
            store = getattr(self, name)
            kept = store.new_empty((len(groups), store.shape[1], members.shape[1], *store.shape[3:]))
            chosen = store[groups[:, None], :, members, : self.n_tokens]  # [P', G', K, t, D]
            kept[:, :, :, : self.n_tokens] = chosen.transpose(1, 2)
            setattr(self, name, kept)

    def attend(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> Tensor:
        """Attention of the newest token of each completion to its prompt and to the completion so far.

        Args:
            query: [P * G, Q, 1, D].
            key: what `update` returned.
            mask: [P, 1, 1, S] of 0 and -inf, or None where no prompt is padded.
            scaling: factor of the scores.
            softcap: scores are squashed to this bound, as in Gemma 2; None: not.
            window: tokens that are seen, this one included; None: all.

        Returns:
            [P * G, 1, Q, D].
        """
        if key is not self._passed:
            raise UnsupportedAttentionError("the model changes keys after they were cached")
        assert self.keys is not None and self.values is not None
        groups, heads, members = self.keys.shape[:3]
        first = 0 if window is None else max(0, self.get_seq_length() - window)
        of_completion = slice(max(0, first - self.prompt_length), self.n_tokens)
        query = (query * scaling).view(groups, members, heads, -1, query.shape[-1]).transpose(1, 2)  # [P, K, G, R, D]
        repeats = query.shape[3]
        prompt = query.reshape(groups, heads, members * repeats, -1) @ self.prompt_keys[:, :, first:].transpose(-1, -2)
        completion = query @ self.keys[:, :, :, of_completion].transpose(-1, -2)  # [P, K, G, R, t]
        if softcap is not None:
            prompt, completion = (softcap * torch.tanh(scores / softcap) for scores in (prompt, completion))
        if mask is not None:
            prompt = prompt + mask[..., first:]
        n_prompt = prompt.shape[-1]
        scores = torch.cat([prompt.unflatten(2, (members, repeats)), completion], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        seen = weights[..., :n_prompt].flatten(2, 3) @ self.prompt_values[:, :, first:]
        output = seen.unflatten(2, (members, repeats)) + weights[..., n_prompt:] @ self.values[:, :, :, of_completion]
        return output.transpose(1, 2).reshape(groups * members, 1, heads * repeats, -1)


class GroupCache(Cache):
    """The layers of a model while decoding, and the padding of the prompts that they share."""

    layers: list[GroupLayer]

    def __init__(self, prefix: Cache, prompt_mask: Tensor, members: int, length: int) -> None:
        """Makes room for `length` tokens of `members` completions behind each prompt.

        Args:
            prefix: the prompts, in `PrefixLayer`s.
            prompt_mask: [P, S] bool.
            members: G.
            length: tokens that a completion may have.
        """
        super().__init__(layers=[GroupLayer(layer, members, length) for layer in prefix.layers])  # type: ignore[arg-type]
        self.mask: Tensor | None = None
        if not bool(prompt_mask.all()):
            dtype = self.layers[0].prompt_keys.dtype
            self.mask = torch.zeros_like(prompt_mask, dtype=dtype).masked_fill_(~prompt_mask, -torch.inf)[:, None, None]

    def keep(self, groups: Tensor, members: Tensor) -> None:
        """Keeps some completions: `members` [P', G'] of the groups [P']."""
        self.mask = None if self.mask is None else self.mask[groups]
        for layer in self.layers:
            layer.keep(groups, members)


def group_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer for the newest token of each completion; `transformers` calls it.

    Raises:
        UnsupportedAttentionError: the model asks for something else than scaled scores, a soft cap or a window.
    """
    cache = _active.get()
    layer = getattr(module, "layer_idx", None)
    if not isinstance(cache, GroupCache) or not isinstance(layer, int) or query.shape[2] != 1:
        raise UnsupportedAttentionError(f"{type(module).__name__} was called outside of group decoding")
    asked = [name for name, wanted in unknown.items() if name not in _HARMLESS and wanted is not None]
    if asked or attention_mask is not None or unknown.get("dropout"):
        raise UnsupportedAttentionError(f"{type(module).__name__} asks for {[*asked, 'a mask or dropout'][0]}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return cache.layers[layer].attend(query, key, cache.mask, scale, softcap, sliding_window), None


_HARMLESS = {"dropout", "position_ids", "position_embeddings", "use_cache", "is_causal", "output_attentions"}
AttentionInterface.register(GROUP_ATTENTION, group_attention)


@contextmanager
def attention_by_groups(model: PreTrainedModel, cache: GroupCache) -> Iterator[None]:
    """Inside, the model's attention is `group_attention` on this cache."""
    config = model.config
    before, token = config._attn_implementation, _active.set(cache)
    # No mask is registered under this name, so `transformers` builds none: the cache knows what is padding.
    config._attn_implementation = GROUP_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
        _active.reset(token)
