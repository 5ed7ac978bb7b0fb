"""A causal language model together with what generation needs to know: tokenizer, end tokens, padding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.adapters import has_adapters, merged
from grpovi_lightning.models.cache_layers import ExpandedLayer, PrefixLayer
from grpovi_lightning.models.capabilities import Capabilities, find_capabilities
from grpovi_lightning.models.compiled_passes import CompiledPasses
from grpovi_lightning.models.group_cache import GroupCache, attention_by_groups
from grpovi_lightning.models.output_head import Split, Whole
from grpovi_lightning.ops import TokenStatistics, chunked_statistics, pad_left, position_ids
from grpovi_lightning.structures import Rollout


class LanguageModel(nn.Module):
    """A `transformers` causal LM and its tokenizer.

    Attributes:
        model: the `transformers` model.
        tokenizer: its tokenizer.
        end_token_ids: every token that ends a completion: those of the generation config and the tokenizer's.
        pad_token_id: fills padding; the first end token where the tokenizer has no padding token.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wraps a loaded model."""
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.end_token_ids = _end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = self.end_token_ids[0] if pad is None else int(pad)  # type: ignore[arg-type]
        self._checkpoints = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        self._capabilities: Capabilities | None = None
        self._compiled: CompiledPasses | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What this model can do, found out at the first use: by then it is on its device."""
        if self._capabilities is None:
            self._capabilities = find_capabilities(self)
        return self._capabilities

    @property
    def runs_prompts_once(self) -> bool:
        """Whether `completion_statistics` runs each prompt once for its whole group.

        Not with gradient checkpointing: `transformers` drops caches there.
        """
        return self.capabilities.shares_prefix and not (self._checkpoints and self.model.training)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts -> token lists, without special tokens added."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def encode_prompts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """P prompts -> (ids [P, S], mask [P, S] bool), left-padded.

        A beginning-of-sequence token is put in front where the tokenizer does that by itself.

        Raises:
            UserError: a prompt is empty.
        """
        rows = self.tokenizer(list(texts))["input_ids"]
        rows = [_without_end(row, self.end_token_ids) for row in rows]  # type: ignore[union-attr]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise UserError(f"prompt {text!r} has no tokens; expected at least one; remove the row")
        ids, mask = pad_left(rows, self.pad_token_id)
        return ids.to(self.device), mask.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def is_sharded(self) -> bool:
        """Whether weights are spread over processes, so that a forward pass gathers them."""
        return any(isinstance(weights, DTensor) for weights in self.model.parameters())

    def completion_statistics(self, rollout: Rollout, temperature: float) -> TokenStatistics:
        """Log-probabilities and entropies of completions under this model.

        Each prompt is run once, with gradient, and its keys and values are expanded to the group; where that cannot be
        (`runs_prompts_once`), prompt and completion are run as one sequence.

        Args:
            rollout: the completions.
            temperature: the sampling temperature; logits are divided by it.

        Returns:
            two [B, T] float32 tensors, 0 at masked positions.
        """
        if self._compiled is not None and self._compiled.take(rollout):
            states = self._compiled.states(rollout)
        else:
            states = self.shared_prefix_states(rollout) if self.runs_prompts_once else self.plain_states(rollout)
        return chunked_statistics(
            states, self.capabilities.parts.head, rollout.completion_ids, rollout.completion_mask, temperature
        )

    def compile_passes(self) -> None:
        """Has `completion_statistics` run compiled code from now on; see `CompiledPasses`."""
        self._compiled = CompiledPasses(self)

    def plain_states(self, rollout: Rollout) -> Tensor:
        """What the head reads to predict the completions, [B, T, D]; prompt and completion are one sequence a row."""
        prompts = rollout.prompt_ids.repeat_interleave(rollout.group_size, dim=0)
        mask = _sequence_mask(rollout.prompt_mask, rollout.completion_mask)
        states = self.capabilities.parts.states(
            rollout.completion_ids.shape[1] + 1,
            input_ids=torch.cat([prompts, rollout.completion_ids], dim=1),
            attention_mask=mask.long(),
            use_cache=False,
            **self.capabilities.positions(position_ids(mask)),
        )
        return states[:, :-1]

    def shared_prefix_states(self, rollout: Rollout) -> Tensor:
        """The same, but prompts are run once, and completions against the expanded cache; [B, T, D]."""
        ids, mask = rollout.grouped(rollout.completion_ids), rollout.grouped(rollout.completion_mask)
        with self.generating():
            return self.group_states(rollout.prompt_ids, rollout.prompt_mask, ids, mask)

    def group_states(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
    ) -> Tensor:
        """`shared_prefix_states` as a function of tensors, [P, S] twice and [P, G, T] twice -> [B, T, D].

        Only the first completion token is predicted by the prompt pass.
        """
        members, length = completion_ids.shape[1:]
        first, prefix = self.prefill(prompt_ids, prompt_mask)
        first = first.repeat_interleave(members, dim=0)[:, None]
        if length == 1:
            return first
        mask = _sequence_mask(prompt_mask, completion_mask.flatten(0, 1))
        rest = self.capabilities.parts.states(
            length - 1,
            input_ids=completion_ids.flatten(0, 1)[:, :-1],
            attention_mask=mask[:, :-1].long(),
            position_ids=position_ids(mask)[:, prompt_ids.shape[1] : -1],
            past_key_values=Cache(layers=[ExpandedLayer(layer, members) for layer in prefix.layers]),  # type: ignore[arg-type]
            use_cache=True,
        )
        return torch.cat([first, rest], dim=1)

    def prefill(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Cache]:
        """Runs prompts, [P, S] left-padded ids and bool mask.

        Returns:
            what the head reads to predict the first completion token, [P, D], and the prompts' cache.
        """
        cache = Cache(layers=[PrefixLayer(window) for window in self.capabilities.windows])
        states = self.capabilities.parts.states(
            1,
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            past_key_values=cache,
            use_cache=True,
        )
        return states[:, -1], cache

    @torch.no_grad()
    def start_groups(
        self, ids: Tensor, mask: Tensor, members: int, length: int, static: bool = False
    ) -> tuple[Tensor, GroupCache]:
        """Runs prompts, [P, S], and makes room for `members` completions of `length` tokens behind each.

        With `static` no shape changes from token to token.

        Returns:
            logits [P, V] of the first token, and the cache for `next_logits`.
        """
        with self.generating():
            states, prefix = self.prefill(ids, mask)
        return self.capabilities.parts.head(states), GroupCache(prefix, mask, members, length, static)

    @torch.no_grad()
    def next_logits(
        self, tokens: Tensor, positions: Tensor, cache: GroupCache, parts: Split | Whole | None = None
    ) -> Tensor:
        """Feeds one token to every completion in the cache.

        Args:
            tokens: [b].
            positions: [b] of these tokens in their sequences.
            cache: grows by one token.
            parts: what computes; None: the model as it is.

        Returns:
            [b, V].
        """
        parts = parts or self.capabilities.parts
        with self.generating(), attention_by_groups(self.model, cache):
            states = parts.states(
                1, input_ids=tokens[:, None], position_ids=positions[:, None], past_key_values=cache, use_cache=True
            )
        cache.advance()
        return parts.head(states[:, -1])

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Inside, a model with gradient checkpointing keeps its cache, which it would drop in training mode."""
        if not (self.model.training and self._checkpoints):
            yield
            return
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model and tokenizer as a Hugging Face checkpoint folder; adapters are merged into the weights."""
        model = merged(self.model) if has_adapters(self.model) else self.model
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _sequence_mask(prompt_mask: Tensor, completion_mask: Tensor) -> Tensor:
    """[P, S] and [B, T] -> [B, S + T] bool, prompt and completion of every row."""
    prompts = prompt_mask.repeat_interleave(len(completion_mask) // len(prompt_mask), dim=0)
    return torch.cat([prompts, completion_mask], dim=1)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = list(configured) if isinstance(configured, list | tuple) else [configured]
    ends = [int(end) for end in dict.fromkeys([*ends, tokenizer.eos_token_id]) if end is not None]  # type: ignore[list-item]
    if not ends:
        raise UserError(
            "the model has no end token: neither its generation config nor its tokenizer names one; "
            "set eos_token in the checkpoint's tokenizer_config.json"
        )
    return ends


def _without_end(row: list[int], ends: list[int]) -> list[int]:
    """Some tokenizers append an end token to every text; a prompt must not end."""
    return row[:-1] if row and row[-1] in ends else row
