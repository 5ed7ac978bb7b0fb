"""The layers of key-value caches in which a prompt stands once for all completions of its group.

`PrefixLayer` keeps the prompt of each group. For training, `ExpandedLayer` puts completions behind it in one
concatenation. For decoding, `GroupLayer` keeps the completions beside it, in memory that is reserved once. It never
copies the prompt: the completions of a group are the rows of one matrix product with the prompt's keys.

Shapes: Q query heads, K key-value heads, R = Q / K, D the size of a head, t completion tokens so far.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class UnsupportedAttentionError(Exception):
    """The model computes its attention in a way that cannot be done group by group."""


class PrefixLayer(DynamicLayer):
    """Keys and values of prompts, [P, K, S, D].

    Attributes:
        window: tokens that this layer sees; None: all.
    """

    def __init__(self, window: int | None = None) -> None:
        # All tokens are kept even where a window is set, because completions move the window; masks hide the rest.
        super().__init__()
        self.window = window


class ExpandedLayer(DynamicLayer):
    """The same prompts for `members` completions each, [P * members, K, S + T, D], copied once."""

    def __init__(self, prefix: PrefixLayer, members: int) -> None:
        super().__init__()
        self.keys, self.values = prefix.keys, prefix.values
        self.members, self.is_initialized = members, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put completions [P * members, K, T, D] behind their prompts, once."""
        assert self.keys is not None and self.values is not None
        self.keys = _behind(self.keys, key_states, self.members)
        self.values = _behind(self.values, value_states, self.members)
        return self.keys, self.values


def _behind(prompts: Tensor, completions: Tensor, members: int) -> Tensor:
    prefix = prompts.unsqueeze(1).expand(-1, members, -1, -1, -1)
    return torch.cat([prefix, completions.unflatten(0, (-1, members))], dim=-2).flatten(0, 1)


class GroupLayer(DynamicLayer):
    """One layer's keys and values while decoding: prompts [P * K, S, D], and completions [P, K, G, length, D].

    The memory of the completions does not grow; each step writes one column. The speed of small models is bound by the
    number of tensor operations here, so there are few.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, prefix: PrefixLayer, members: int, length: int) -> None:
        super().__init__()
        assert prefix.keys is not None and prefix.values is not None
        self.prompt_keys, self.prompt_values = prefix.keys.flatten(0, 1), prefix.values.flatten(0, 1)
        self.prompt_length = prefix.keys.shape[2]
        self.window = prefix.window
        groups, heads = prefix.keys.shape[:2]
        self.keys = prefix.keys.new_empty((groups, heads, members, length, prefix.keys.shape[-1]))
        self.values = prefix.values.new_empty((groups, heads, members, length, prefix.values.shape[-1]))
        self.is_initialized = True
        self.n_tokens = 0
        self._passed: Tensor | None = None

    def get_seq_length(self) -> int:
        """Return the number of prompt and completion tokens so far, padding included."""
        return self.prompt_length + self.n_tokens

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the next token of every completion, [P * G, K, 1, D], and return the arguments.

        The model passes them on to `group_attention`, which takes what it needs from this layer.
        """
        groups, heads, members = self.keys.shape[:3]
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            store.select(3, self.n_tokens).copy_(states.reshape(groups, members, heads, -1).transpose(1, 2))
        self.n_tokens += 1
        self._passed = key_states  # so that `attend` notices a model that does something to its keys afterwards
        return key_states, value_states

    def keep(self, groups: Tensor, members: Tensor) -> None:
        """Keep some completions: `members` [P', G'] of the groups [P']."""
        before, heads = self.keys.shape[:2]
        self.prompt_keys = self.prompt_keys.unflatten(0, (before, heads))[groups].flatten(0, 1)
        self.prompt_values = self.prompt_values.unflatten(0, (before, heads))[groups].flatten(0, 1)
        for name in ("keys", "values"):
            store = getattr(self, name)
            kept = store.new_empty((len(groups), heads, members.shape[1], *store.shape[3:]))
            chosen = store[groups[:, None], :, members, : self.n_tokens]  # [P', G', K, t, D]
            kept[:, :, :, : self.n_tokens] = chosen.transpose(1, 2)
            setattr(self, name, kept)

    def attend(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> Tensor:
        """Compute the attention of the newest token of each completion to its prompt and to the completion so far.

        Args:
            query: [P * G, Q, 1, D].
            key: what `update` returned.
            mask: [P * K, 1, S] of 0 and -inf, or None where no prompt is padded.
            scaling: factor of the scores.
            softcap: scores are squashed to this bound, as in Gemma 2; None: not.
            window: tokens that are seen, this one included; None: all.

        Returns:
            [P * G, 1, Q, D].

        Raises:
            UnsupportedAttentionError: the keys are not those that were cached.
        """
        if key is not self._passed:
            raise UnsupportedAttentionError("the model changes keys after they were cached")
        first = 0 if window is None else max(0, self.get_seq_length() - window)
        seen = slice(max(0, first - self.prompt_length), self.n_tokens)
        mask = None if mask is None else mask[..., first:]
        return self._attention(query * scaling, slice(first, None), seen, mask, None, softcap)

    def _attention(
        self,
        query: Tensor,
        of_prompt: slice,
        of_completion: slice,
        prompt_mask: Tensor | None,
        completion_mask: Tensor | None,
        softcap: float | None,
    ) -> Tensor:
        """Compute the attention to some columns; the masks are added to their scores."""
        groups, heads, members = self.keys.shape[:3]
        rows, size = groups * heads, query.shape[-1]
        keys = self.keys.view(rows * members, -1, size)[:, of_completion]  # [P * K * G, t, D]
        values = self.values.flatten(0, 2)[:, of_completion]
        prompt_keys, prompt_values = self.prompt_keys[:, of_prompt], self.prompt_values[:, of_prompt]

        query = query.view(groups, members, heads, -1, size).transpose(1, 2).reshape(rows, -1, size)
        on_prompt = attention_scores(query, prompt_keys, prompt_mask, softcap)
        query = query.reshape(rows * members, -1, size)  # [P * K * G, R, D]
        on_completion = self._completion_scores(query, keys, completion_mask, softcap)
        on_prompt = on_prompt.view(*on_completion.shape[:2], prompt_keys.shape[1])
        # Prompt and completion are joined before the softmax, so this is exact and no combination of two parts.
        weights = torch.cat([on_prompt, on_completion], dim=-1).softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        on_prompt, on_completion = weights.split([prompt_keys.shape[1], keys.shape[1]], dim=-1)
        output = torch.bmm(on_prompt.reshape(rows, members * query.shape[1], prompt_keys.shape[1]), prompt_values)
        output = self._with_completion(output.view(rows * members, -1, output.shape[-1]), on_completion, values)
        output = output.view(groups, heads, members, -1, output.shape[-1]).transpose(1, 2)
        return output.reshape(groups * members, 1, -1, output.shape[-1])

    def _completion_scores(self, query: Tensor, keys: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
        """Return scores [P * K * G, R, t] of queries [P * K * G, R, D] and keys [P * K * G, t, D]."""
        return attention_scores(query, keys, mask, softcap)

    def _with_completion(self, output: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """Add weights [P * K * G, R, t] times values [P * K * G, t, D] to the output [P * K * G, R, D]."""
        return torch.baddbmm(output, weights, values)


class StaticGroupLayer(GroupLayer):
    """The same in shapes that do not change from token to token, for code that is compiled or captured.

    Attributes:
        visible: attention reads that many columns, and those not written yet are masked.
        place: [1] the number of tokens so far, a tensor that all layers share.
    """

    def __init__(self, prefix: PrefixLayer, members: int, length: int, place: Tensor) -> None:
        super().__init__(prefix, members, length)
        # Columns that are not written yet are read and masked, and 0 times the NaN of unused memory would be NaN.
        self.keys.zero_()
        self.values.zero_()
        self.place, self.visible = place, length

    def get_seq_length(self) -> int:
        # The number of completion tokens is in `place` only, on the device; nothing here asks for it.
        return self.prompt_length

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        groups, heads, members = self.keys.shape[:3]
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            column = states.reshape(groups, members, heads, 1, -1).transpose(1, 2)
            store.index_copy_(3, self.place, column)
        self._passed = key_states
        return key_states, value_states

    def keep(self, groups: Tensor, members: Tensor) -> None:
        raise NotImplementedError  # it would change the shapes

    def attend(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, softcap: float | None, window: int | None
    ) -> Tensor:
        columns = torch.arange(self.visible, device=query.device)
        seen = columns <= self.place
        if window is not None:
            slots = torch.arange(self.prompt_length, device=query.device)
            seen &= columns > self.place - window
            in_window = torch.where(slots > self.prompt_length + self.place - window, 0.0, -torch.inf).to(query.dtype)
            mask = in_window.expand(self.prompt_keys.shape[0], 1, -1) if mask is None else mask + in_window
        later = torch.where(seen, 0.0, -torch.inf).to(query.dtype)[None, None]
        return self._attention(query * scaling, slice(None), slice(0, self.visible), mask, later, softcap)

    def _completion_scores(self, query: Tensor, keys: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
        # Where R = 1 a compiler makes one loop of this, which is faster than many products of one row.
        if query.shape[1] > 1 or not torch.compiler.is_compiling():
            return super()._completion_scores(query, keys, mask, softcap)
        scores = (query[:, :, None] * keys[:, None]).sum(dim=-1)
        return capped(scores, mask, softcap)

    def _with_completion(self, output: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        if weights.shape[1] > 1 or not torch.compiler.is_compiling():
            return super()._with_completion(output, weights, values)
        return output + (weights[..., None] * values[:, None]).sum(dim=-2)


def attention_scores(query: Tensor, keys: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
    """Return the scores [n, q, k] of queries [n, q, D] and keys [n, k, D], capped and masked."""
    keys = keys.transpose(1, 2)
    # One operation instead of two; a compiler would copy the mask for it, and fuses the addition by itself.
    if softcap is None and mask is not None and not torch.compiler.is_compiling():
        return torch.baddbmm(mask, query, keys)
    return capped(torch.bmm(query, keys), mask, softcap)


def capped(scores: Tensor, mask: Tensor | None, softcap: float | None) -> Tensor:
    """Squash scores to the soft cap, then mask them by addition."""
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores if mask is None else scores + mask
