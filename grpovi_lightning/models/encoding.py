"""Texts as the token lists that models read: where special tokens stand, and which token ends a completion.

A special token that a text has already, as after a chat template, is not added a second time.
"""

from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what is written behind a completion that ended: the tokenizer's end token, where it has one."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]  # type: ignore[arg-type]


def configured_ends(model: PreTrainedModel) -> list[int]:
    """Return the end tokens that the model's generation config, else its config, names."""
    for config in (getattr(model, "generation_config", None), model.config.get_text_config(decoder=True)):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return [int(end) for end in found] if isinstance(found, list | tuple) else [int(found)]
    return []


def name_end_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Give a tokenizer without an end token the first one that its model names, so that all write the same."""
    for end in configured_ends(model)[:1]:
        token = tokenizer.convert_ids_to_tokens(end)
        if tokenizer.eos_token_id is None and isinstance(token, str):
            tokenizer.eos_token = token


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer puts before every text and behind it, such as an encoder's [CLS], [SEP]."""
    rows: list[list[int]] = [tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False)]  # type: ignore[misc]
    whole, bare = rows
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def text_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of whole texts, within the tokenizer's frame."""
    opening, closing = (len(part) for part in frame(tokenizer))
    rows: Any = tokenizer(list(texts))["input_ids"]
    kept = []
    for row in rows:
        if opening and len(row) >= 2 * opening + closing and row[:opening] == row[opening : 2 * opening]:
            row = row[opening:]
        if closing and len(row) >= opening + 2 * closing and row[-closing:] == row[-2 * closing : -closing]:
            row = row[:-closing]
        kept.append(list(row))
    return kept


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], ends: Collection[int]) -> list[list[int]]:
    """Return the tokens of prompts, to which a completion is going to be added: they do not end.

    Some tokenizers append an end token to every text.
    """
    closing = len(frame(tokenizer)[1])
    rows = [row[: len(row) - closing] for row in text_tokens(tokenizer, prompts)]
    return [row[:-1] if row and row[-1] in ends else row for row in rows]


def completion_tokens(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[str], written: list[int], ends: Collection[int]
) -> list[list[int]]:
    """Return the tokens of completions that ended: `written` follows those that do not end with one of `ends`."""
    rows: Any = tokenizer(list(completions), add_special_tokens=False)["input_ids"]
    return [list(row) if row and row[-1] in ends else [*row, *written] for row in rows]
