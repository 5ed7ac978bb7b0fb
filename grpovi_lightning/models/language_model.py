"""A causal language model together with what generation needs to know: tokenizer, end tokens, padding."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from grpovi_lightning.errors import UserError
from grpovi_lightning.ops import TokenStatistics, pad_left, position_ids, token_statistics
from grpovi_lightning.structures import Rollout


class LanguageModel(nn.Module):
    """A `transformers` causal LM and its tokenizer.

    Attributes:
        model: the `transformers` model.
        tokenizer: its tokenizer.
        end_token_ids: every token that ends a completion: those of the generation config and the tokenizer's.
        pad_token_id: fills padding; the first end token where the tokenizer has no padding token.
        shares_prefix: whether training runs each prompt once for its whole group; only where every layer
            attends to all earlier tokens, so that the cache holds the whole prompt.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wraps a loaded model."""
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.end_token_ids = _end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = self.end_token_ids[0] if pad is None else int(pad)  # type: ignore[arg-type]
        self.shares_prefix = _attends_fully(model)

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

    def completion_statistics(self, rollout: Rollout, temperature: float) -> TokenStatistics:
        """Log-probabilities and entropies of completions under this model.

        Each prompt is run once, with gradient, and its keys and values are expanded to the group; where the
        model's cache does not allow that, prompt and completion are run as one sequence.

        Args:
            rollout: the completions.
            temperature: the sampling temperature; logits are divided by it.

        Returns:
            two [B, T] float32 tensors; what stands at masked positions has no meaning.
        """
        logits = self._shared_prefix_logits(rollout) if self.shares_prefix else self._plain_logits(rollout)
        return token_statistics(logits, rollout.completion_ids, temperature)

    def _plain_logits(self, rollout: Rollout) -> Tensor:
        """Prompt and completion as one sequence a row; [B, T, V]."""
        prompts = rollout.prompt_ids.repeat_interleave(rollout.group_size, dim=0)
        mask = _sequence_mask(rollout)
        logits = self.model(
            input_ids=torch.cat([prompts, rollout.completion_ids], dim=1),
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            use_cache=False,
            logits_to_keep=rollout.completion_ids.shape[1] + 1,
        ).logits
        return logits[:, :-1]

    def _shared_prefix_logits(self, rollout: Rollout) -> Tensor:
        """Prompts once, then completions against the expanded cache; [B, T, V].

        Only the first completion token is predicted by the prompt pass.
        """
        cache = DynamicCache(config=self.model.config)
        first = self.prefill(rollout.prompt_ids, rollout.prompt_mask, cache)
        cache.batch_repeat_interleave(rollout.group_size)
        first = first.repeat_interleave(rollout.group_size, dim=0)[:, None]
        if rollout.completion_ids.shape[1] == 1:
            return first
        mask = _sequence_mask(rollout)
        rest = self.model(
            input_ids=rollout.completion_ids[:, :-1],
            attention_mask=mask[:, :-1].long(),
            position_ids=position_ids(mask)[:, rollout.prompt_ids.shape[1] : -1],
            past_key_values=cache,
            use_cache=True,
        ).logits
        return torch.cat([first, rest], dim=1)

    def prefill(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Runs prompts into an empty cache; returns the logits of the first completion token.

        Args:
            ids: [P, S] left-padded.
            mask: [P, S] bool.
            cache: empty; filled in place.

        Returns:
            [P, V].
        """
        output = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model and tokenizer as a Hugging Face checkpoint folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _sequence_mask(rollout: Rollout) -> Tensor:
    """[B, S + T] bool, prompt and completion of every row."""
    prompts = rollout.prompt_mask.repeat_interleave(rollout.group_size, dim=0)
    return torch.cat([prompts, rollout.completion_mask], dim=1)


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


def _attends_fully(model: PreTrainedModel) -> bool:
    """Whether a plain `DynamicCache` holds all keys and values of every layer."""
    cache = DynamicCache(config=model.config)
    return all(type(layer) is DynamicLayer for layer in cache.layers) and not getattr(model, "_is_stateful", False)


def _without_end(row: list[int], ends: list[int]) -> list[int]:
    """Some tokenizers append an end token to every text; a prompt must not end."""
    return row[:-1] if row and row[-1] in ends else row
