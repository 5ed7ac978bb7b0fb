"""Prompt and completion as the one sequence of tokens that a reward's own model reads.

A conversation is read through the chat template of that model, whatever the policy's looks like.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.conversations import Answer, Conversation, Prompt, as_messages
from grpovi_lightning.models.chat import answered_text, chat_tokens, has_turns, plain_pair, prompt_rows
from grpovi_lightning.models.encoding import completion_tokens, end_tokens, frame, prompt_tokens, text_tokens
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.structures import Rollout


class SequenceReader:
    """Turns rollouts into token lists for a model with a tokenizer of its own.

    If its vocabulary is the policy's, the model reads the policy's tokens. Otherwise, and of conversations, the text is
    tokenised anew. A completion that ended is followed by the model's own end token, as the completions of tables are.
    Without a policy's tokenizer rollouts are such completions of tables.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, policy_tokenizer: PreTrainedTokenizerBase | None, limits: InputLimits
    ) -> None:
        self.tokenizer, self.policy_tokenizer, self.limits = tokenizer, policy_tokenizer, limits
        self.shares_tokens = policy_tokenizer is not None and tokenizer.get_vocab() == policy_tokenizer.get_vocab()

    def rows(self, rollout: Rollout) -> list[list[int]]:
        """Return B token lists without padding, each a prompt with its completion.

        Raises:
            UserError: the model cannot read one of them, or has no chat template for conversations.
        """
        rows, texts = self._rows(rollout), rollout.prompts.texts
        self.limits.check(rows, lambda i: f"a completion of prompt {texts[i // rollout.group_size][:60]!r}")
        return rows

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token lists that rows about these prompts start with."""
        return prompt_rows(self.tokenizer, prompts, end_tokens(self.tokenizer))

    def _rows(self, rollout: Rollout) -> list[list[int]]:
        prompts = [prompt for prompt in rollout.prompts.contents for _ in range(rollout.group_size)]
        if any(isinstance(prompt, Conversation) for prompt in prompts):
            answers = [as_messages(text) for text in rollout.texts]
            ended = [not cut for cut in rollout.truncated.tolist()]
            return text_rows(self.tokenizer, prompts, answers, ended)
        if self.policy_tokenizer is None:
            return text_rows(self.tokenizer, prompts, rollout.texts)
        return self._shared_tokens(rollout) if self.shares_tokens else self._own_tokens(rollout)

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
        assert self.policy_tokenizer is not None, "without one, rollouts are completions of tables"
        prompts = [ids[kept].tolist() for ids, kept in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
        heads = self.policy_tokenizer.batch_decode(prompts, skip_special_tokens=True)
        wholes = self.policy_tokenizer.batch_decode(self._policy_tokens(rollout), skip_special_tokens=True)
        texts = []
        for i, (whole, completion) in enumerate(zip(wholes, rollout.texts, strict=True)):
            prompt, head = (part[i // rollout.group_size] for part in (rollout.prompts.texts, heads))
            texts.append(prompt + (whole.removeprefix(head) if whole.startswith(head) else completion))
        return texts


def text_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    completions: Sequence[Answer],
    ended: Sequence[bool] | None = None,
) -> list[list[int]]:
    """Return token lists of prompts with completions, which ended, as those of preference data, unless `ended` differs.

    Tokens with which the tokenizer closes every text, such as BERT's [SEP], follow the completion, not the prompt.
    """
    ended = ended or [True] * len(prompts)
    turns = list(zip(prompts, completions, ended, strict=True))
    if has_turns(tokenizer, prompts):
        return chat_tokens(tokenizer, [answered_text(tokenizer, *turn) for turn in turns])
    texts = [plain_pair(tokenizer, *turn) for turn in turns]
    ends, closing = end_tokens(tokenizer), frame(tokenizer)[1]
    written = closing or ends
    heads = prompt_tokens(tokenizer, [prompt for prompt, _ in texts], ends)
    tails = completion_tokens(tokenizer, [text for _, text in texts], written, {*ends, *written[-1:]})
    # An encoder closes every text. Elsewhere the end token tells that a completion ended.
    cut = [not (done or closing) and tail[-1:] == written for tail, done in zip(tails, ended, strict=True)]
    return [head + (tail[:-1] if is_cut else tail) for head, tail, is_cut in zip(heads, tails, cut, strict=True)]


def pair_rows(tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Sequence[Any]]) -> list[list[int]]:
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
