"""Prompt and completion as the one sequence of tokens that a reward's own model reads."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.models.encoding import completion_tokens, end_tokens, frame, prompt_tokens, text_tokens
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.structures import Rollout


class SequenceReader:
    """Turns rollouts into token lists for a model with a tokenizer of its own.

    If its vocabulary is the policy's, the model reads the policy's tokens. Otherwise the text is tokenised anew. A
    completion that ended is followed by the model's own end token, as the completions of tables are.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, policy_tokenizer: PreTrainedTokenizerBase, limits: InputLimits
    ) -> None:
        self.tokenizer, self.policy_tokenizer, self.limits = tokenizer, policy_tokenizer, limits
        self.shares_tokens = tokenizer.get_vocab() == policy_tokenizer.get_vocab()

    def rows(self, rollout: Rollout) -> list[list[int]]:
        """Return B token lists without padding, each a prompt with its completion.

        Raises:
            UserError: the model cannot read one of them.
        """
        rows = self._shared_tokens(rollout) if self.shares_tokens else self._own_tokens(rollout)
        texts = rollout.prompts.texts
        self.limits.check(rows, lambda i: f"a completion of prompt {texts[i // rollout.group_size][:60]!r}")
        return rows

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token lists that rows about these prompts start with."""
        return prompt_tokens(self.tokenizer, texts, end_tokens(self.tokenizer))

    def _shared_tokens(self, rollout: Rollout) -> list[list[int]]:
        # The policy may end a completion with another of its end tokens, which no table has.
        end = end_tokens(self.tokenizer)
        rows = zip(self._policy_tokens(rollout), rollout.truncated.tolist(), strict=True)
        return [row if cut or not end else [*row[:-1], *end] for row, cut in rows]

    def _policy_tokens(self, rollout: Rollout) -> list[list[int]]:
        prompts = [ids[kept].tolist() for ids, kept in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
        completions = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
        return [prompts[i // rollout.group_size] + ids[kept].tolist() for i, (ids, kept) in enumerate(completions)]

    def _own_tokens(self, rollout: Rollout) -> list[list[int]]:
        encoded = text_tokens(self.tokenizer, self._texts(rollout))
        end, closing = end_tokens(self.tokenizer), len(frame(self.tokenizer)[1])
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
    ends = end_tokens(tokenizer)
    written = frame(tokenizer)[1] or ends
    heads = prompt_tokens(tokenizer, prompts, ends)
    tails = completion_tokens(tokenizer, completions, written, {*ends, *written[-1:]})
    return [[*head, *tail] for head, tail in zip(heads, tails, strict=True)]


def pair_rows(tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """Return the `text_rows` of a batch's chosen completions, and behind them those of its rejected ones."""
    return [row for side in ("chosen", "rejected") for row in text_rows(tokenizer, batch["prompt"], batch[side])]


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
