"""Decoding by groups: the cache of a model, and the attention that reads it.

Models reach it through the attention interface of `transformers`, as `GROUP_ATTENTION`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

from grpovi_lightning.models.passes.cache_layers import GroupLayer, StaticGroupLayer, UnsupportedAttentionError
from grpovi_lightning.models.passes.model_traits import attention_named

GROUP_ATTENTION = "grpovi_group"


class _Active:
    """The cache that is being decoded into: the attention function gets no other hint of it."""

    # An attribute and no `ContextVar`, because `torch.compile` cannot look into one.
    cache: "GroupCache | None" = None


_active = _Active()


class GroupCache(Cache):
    """The layers of a model while decoding, and the padding of the prompts that they share."""

    layers: list[GroupLayer]

    def __init__(self, prefix: Cache, prompt_mask: Tensor, members: int, length: int, static: bool = False) -> None:
        """Make room behind the prompts, in the `PrefixLayer`s of `prefix`; see `ForwardPasses.start_groups`."""
        prompts: list[Any] = prefix.layers
        self.place = torch.zeros(1, dtype=torch.long, device=prompt_mask.device)
        if static:
            layers = [StaticGroupLayer(layer, members, length, self.place) for layer in prompts]
        else:
            layers = [GroupLayer(layer, members, length) for layer in prompts]
        super().__init__(layers=layers)  # type: ignore[arg-type]
        self.mask: Tensor | None = None
        # Without padding there is nothing to mask, and one operation less a layer. Static shapes always get a mask,
        # because whether there is padding must not change the code that runs.
        if static or not bool(prompt_mask.all()):
            keys = prompts[0].keys
            zeros = torch.zeros_like(prompt_mask, dtype=keys.dtype)
            self.mask = zeros.masked_fill_(~prompt_mask, -torch.inf).repeat_interleave(keys.shape[1], dim=0)[:, None]

    def show(self, columns: int) -> None:
        """Have static layers read this many columns, enough for all tokens that come before the next call."""
        for layer in self.layers:
            assert isinstance(layer, StaticGroupLayer)
            layer.visible = columns

    def advance(self) -> None:
        """Go to the next token, once every layer has seen the one before."""
        self.place.add_(1)

    def keep(self, groups: Tensor, members: Tensor) -> None:
        """Keep some completions: `members` [P', G'] of the groups [P']."""
        if self.mask is not None:
            before, heads = self.layers[0].keys.shape[:2]
            self.mask = self.mask.unflatten(0, (before, heads))[groups].flatten(0, 1)
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
    """Compute the attention of one layer for the newest token of each completion; `transformers` calls this.

    Raises:
        UnsupportedAttentionError: the model asks for something else than scaled scores, a soft cap or a window.
    """
    cache = _active.cache
    layer = getattr(module, "layer_idx", None)
    if cache is None or not isinstance(layer, int) or query.shape[2] != 1:
        raise UnsupportedAttentionError(f"{type(module).__name__} was called outside of group decoding")
    asked = [name for name, wanted in unknown.items() if name not in _HARMLESS and wanted is not None]
    if asked or attention_mask is not None or unknown.get("dropout"):
        raise UnsupportedAttentionError(f"{type(module).__name__} asks for {[*asked, 'a mask or dropout'][0]}")
    if sliding_window != cache.layers[layer].window:
        raise UnsupportedAttentionError(f"{type(module).__name__} has a window that it tells its mask only")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return cache.layers[layer].attend(query, key, cache.mask, scale, softcap, sliding_window), None


_HARMLESS = {"dropout", "position_ids", "position_embeddings", "use_cache", "is_causal", "output_attentions"}
AttentionInterface.register(GROUP_ATTENTION, group_attention)


@contextmanager
def attention_by_groups(model: PreTrainedModel, cache: GroupCache) -> Iterator[None]:
    """Have the model's attention be `group_attention` on this cache; afterwards it is what it was before."""
    before, _active.cache = _active.cache, cache
    try:
        # No mask is registered under this name, so `transformers` builds none: the cache knows what is padding.
        with attention_named(model, GROUP_ATTENTION):
            yield
    finally:
        _active.cache = before
