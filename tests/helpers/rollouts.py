"""Rollouts written by hand."""

import torch

from grpovi_lightning.ops import pad_left, pad_right
from grpovi_lightning.structures import PromptBatch, Rollout


def rollout_of_words(tokenizer, prompts, groups, columns=None, truncated=None, ref_logprobs=None) -> Rollout:
    """A rollout of the given texts; each completion gets an end token unless it is truncated.

    Args:
        tokenizer: encodes words.
        prompts: P texts.
        groups: P lists of G texts.
        columns: name -> P values.
        truncated: B bools.
        ref_logprobs: B lists of numbers, one a completion token.
    """
    texts = [text for group in groups for text in group]
    truncated = truncated or [False] * len(texts)
    end = [tokenizer.eos_token_id]
    rows = [tokenizer(text)["input_ids"] + ([] if cut else end) for text, cut in zip(texts, truncated, strict=True)]
    prompt_ids, prompt_mask = pad_left([tokenizer(text)["input_ids"] for text in prompts], tokenizer.pad_token_id)
    completion_ids, completion_mask = pad_right(rows, tokenizer.pad_token_id)
    return Rollout(
        prompts=PromptBatch(list(prompts), torch.arange(len(prompts)), columns or {}),
        group_size=len(groups[0]),
        step=0,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        old_logprobs=torch.zeros(completion_ids.shape),
        truncated=torch.tensor(truncated),
        texts=texts,
        ref_logprobs=None if ref_logprobs is None else ragged(ref_logprobs, completion_ids.shape[1]),
    )


def rollout_of_logprobs(rows, group_size: int, fill: float = 0.0) -> Rollout:
    """A rollout whose completions have the given reference log-probabilities, one list a completion."""
    length = max(len(row) for row in rows)
    n_prompts = len(rows) // group_size
    mask = torch.tensor([[t < len(row) for t in range(length)] for row in rows])
    return Rollout(
        prompts=PromptBatch(["prompt"] * n_prompts, torch.arange(n_prompts), {}),
        group_size=group_size,
        step=0,
        prompt_ids=torch.zeros(n_prompts, 1, dtype=torch.long),
        prompt_mask=torch.ones(n_prompts, 1, dtype=torch.bool),
        completion_ids=torch.zeros(len(rows), length, dtype=torch.long),
        completion_mask=mask,
        old_logprobs=torch.zeros(len(rows), length),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
        texts=["text"] * len(rows),
        ref_logprobs=ragged(rows, length, fill),
    )


def ragged(rows, length: int, fill: float = 0.0) -> torch.Tensor:
    """Lists of numbers -> [B, length] float32, `fill` where a list has ended."""
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
