"""Prompt and completion as the one sequence of tokens that a reward's own model reads."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.structures import Rollout


class SequenceReader:
    """Turns rollouts into token lists for a model with a tokenizer of its own.

    If its vocabulary is the policy's, the model reads the policy's tokens, the end token included. Otherwise the text
    is tokenised anew, and the model's end token follows a completion that ended.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.policy_tokenizer = tokenizer, policy_tokenizer
        self.shares_tokens = tokenizer.get_vocab() == policy_tokenizer.get_vocab()

    def rows(self, rollout: Rollout) -> list[list[int]]:
        """Return B token lists without padding, each a prompt with its completion."""
        return self._policy_tokens(rollout) if self.shares_tokens else self._own_tokens(rollout)

    def _policy_tokens(self, rollout: Rollout) -> list[list[int]]:
        prompts = [ids[kept].tolist() for ids, kept in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
        completions = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
        return [prompts[i // rollout.group_size] + ids[kept].tolist() for i, (ids, kept) in enumerate(completions)]

    def _own_tokens(self, rollout: Rollout) -> list[list[int]]:
        encoded: list[list[int]] = self.tokenizer(self._texts(rollout))["input_ids"]  # type: ignore[assignment]
        end, closing = end_tokens(self.tokenizer), len(closing_tokens(self.tokenizer))
        pairs = zip(encoded, rollout.truncated.tolist(), strict=True)
        # An encoder closes every text itself. Elsewhere only the end token tells that a completion ended.
        return [row if closing or cut or row[-1:] == end else [*row, *end] for row, cut in pairs]

    def _texts(self, rollout: Rollout) -> list[str]:
        """Return B texts, each a prompt with its completion.

        Some tokenizers drop the space before the first word of a text. A completion decoded by itself would lose it, so
        prompt and completion are decoded together, and the prompt is taken off.
        """
        prompts = [ids[kept].tolist() for ids, kept in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
        heads = self.policy_tokenizer.batch_decode(prompts, skip_special_tokens=True)
        wholes = self.policy_tokenizer.batch_decode(self._policy_tokens(rollout), skip_special_tokens=True)
        texts = []
        for i, (whole, completion) in enumerate(zip(wholes, rollout.texts, strict=True)):
            prompt, head = (part[i // rollout.group_size] for part in (rollout.prompts.texts, heads))
            texts.append(prompt + (whole.removeprefix(head) if whole.startswith(head) else completion))
        return texts


def text_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> list[list[int]]:
    """Return token lists of prompts with completions that ended, as preference data has them.

    Tokens with which the tokenizer closes every text, such as BERT's [SEP], follow the completion, not the prompt.
    """
    closing = closing_tokens(tokenizer)
    heads = tokenizer(list(prompts))["input_ids"]
    tails = tokenizer(list(completions), add_special_tokens=False)["input_ids"]
    end = closing or end_tokens(tokenizer)
    heads = [head[: len(head) - len(closing)] for head in heads]  # type: ignore[arg-type, index]
    return [[*head, *tail, *end] for head, tail in zip(heads, tails, strict=True)]  # type: ignore[misc]


def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts behind every text: [SEP] of an encoder, none for most causal LMs."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    opening = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)  # type: ignore[arg-type, index]
    return list(whole[opening + len(bare) :])  # type: ignore[arg-type, index]


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that follow a completion that ended: the tokenizer's end token, where it has one."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]  # type: ignore[arg-type]


def own_precision(model: PreTrainedModel) -> torch.autocast:
    """Let a frozen model compute in the dtype of its weights, also where the trainer mixes precisions.

    Its numbers then do not depend on the precision in which the policy is trained.
    """
    return torch.autocast(model.device.type, enabled=False)


def in_batches(rows: Sequence[list[int]], batch_size: int, compute: Callable[[list[list[int]]], Tensor]) -> Tensor:
    """Apply `compute` (b token lists -> [b, ...]) to batches of rows of similar length; [B, ...] in the given order."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [by_length[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    found = torch.cat([compute([rows[i] for i in part]) for part in parts])
    return found[torch.tensor(by_length, device=found.device).argsort()]
