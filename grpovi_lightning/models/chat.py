"""Conversations as the text that a chat template makes of them, and as the tokens of that text.

A template writes all special tokens itself, so its text gets none from the tokenizer: none stands there twice.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpovi_lightning.conversations import Answer, Conversation, Message, Prompt, content_text, transcript
from grpovi_lightning.errors import UserError
from grpovi_lightning.models.encoding import prompt_tokens

PLAIN = "plain"
"""In place of a file: the contents of the messages, one below the other, for models that know no roles."""

_PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n' }}{% endif %}"
)
_QUESTION: Message = {"role": "user", "content": "question"}
_ANSWER: Message = {"role": "assistant", "content": "answer"}


def set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Give a tokenizer another chat template: `plain`, or the text of a file; None leaves it its own.

    Raises:
        UserError: the file cannot be read.
    """
    if template is None:
        return
    if template != PLAIN:
        check_chat_template(template)
    tokenizer.chat_template = _PLAIN_TEMPLATE if template == PLAIN else Path(template).read_text(encoding="utf-8")


def check_chat_template(template: str | None) -> None:
    """Raise `UserError` for a template's file that cannot be read."""
    if template is None or template == PLAIN:
        return
    try:
        Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"chat_template {template}: cannot be read ({error}); expected a Jinja file or {PLAIN!r}"
        ) from error


def prompt_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """Return a conversation up to where the assistant's answer begins."""
    return _render(tokenizer, conversation, conversation.messages, add_generation_prompt=True)


def answered_text(tokenizer: PreTrainedTokenizerBase, conversation: Prompt, answer: Answer, ended: bool = True) -> str:
    """Return a conversation with its answer; the template does not close one that was cut off."""
    assert isinstance(conversation, Conversation) and not isinstance(answer, str), "a batch is all text or all messages"
    whole = _render(tokenizer, conversation, [*conversation.messages, *answer])
    if ended:
        return whole
    # Not by `continue_final_message` of `transformers`, which raises where a template changes what was said.
    said = content_text(answer[-1]).strip()
    place = whole.rfind(said) if said else -1
    return prompt_text(tokenizer, conversation) + said if place < 0 else whole[: place + len(said)]


def prompt_rows(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], ends: Collection[int]
) -> list[list[int]]:
    """Return the tokens of prompts, text or conversations, to which an answer is going to be added."""
    texts = [prompt if isinstance(prompt, str) else prompt_text(tokenizer, prompt) for prompt in prompts]
    return chat_tokens(tokenizer, texts) if has_turns(tokenizer, prompts) else prompt_tokens(tokenizer, texts, ends)


def has_turns(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> bool:
    """Return whether a batch is conversations whose turns the tokenizer's chat template marks.

    Raises:
        UserError: it is conversations, and the tokenizer has no chat template.
    """
    return any(isinstance(prompt, Conversation) for prompt in prompts) and marks_turns(tokenizer)


def marks_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template writes special tokens; otherwise its text is like any other."""
    ids = chat_tokens(tokenizer, [answered_text(tokenizer, Conversation([_QUESTION]), [_ANSWER])])[0]
    return any(_is_added(tokenizer, token) for token in ids)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special token that the chat template writes behind an answer; none without one, or a template."""
    if tokenizer.chat_template is None:
        return []
    try:
        text = answered_text(tokenizer, Conversation([_QUESTION]), [_ANSWER])
    except UserError:  # a template for rows of another kind; where such a row is read, its error is told
        return []
    behind = chat_tokens(tokenizer, [text.rpartition(str(_ANSWER["content"]))[2]])[0]
    return [token for token in behind if _is_added(tokenizer, token)][:1]


def chat_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts that a chat template made."""
    rows: Any = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return rows


def plain_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: Answer, ended: bool = True
) -> tuple[str, str]:
    """Return prompt and completion as text, by a chat template that does not mark turns; text stays as it is.

    Raises:
        UserError: the answer is several messages, whose turns cannot be told from each other.
    """
    if isinstance(prompt, str) or isinstance(answer, str):
        return str(prompt), transcript(answer)
    if len(answer) != 1:
        raise UserError(
            f"chat template of {_name(tokenizer)}: it writes no special tokens, so the {len(answer)} messages of an "
            "answer cannot be told from each other; expected one message, or another chat_template"
        )
    head, whole = prompt_text(tokenizer, prompt), answered_text(tokenizer, prompt, answer, ended)
    return head, whole[len(_checked_head(tokenizer, head, whole)) :]


def demonstration(
    tokenizer: PreTrainedTokenizerBase, conversation: Prompt, answer: Answer, written: list[int]
) -> tuple[list[int], list[bool]]:
    """Return the tokens of a conversation with its answer, and which of them the assistant says in the answer.

    What the template writes behind the last turn's end, such as a line break, is left out: the policy stops there.

    Args:
        tokenizer: with a template that marks turns.
        conversation: what comes before; its turns do not count as said in the answer.
        answer: messages; each of an assistant counts, with the token that ends the turn.
        written: what follows an answer whose turn the template does not end.
    """
    assert isinstance(conversation, Conversation) and not isinstance(answer, str), "a batch is all text or all messages"
    messages = [*conversation.messages, *answer]
    text = _render(tokenizer, conversation, messages)
    encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, starts = list(encoded["input_ids"]), [start for start, _ in encoded["offset_mapping"]]
    ends = {*turn_end(tokenizer), *written}
    said, last = [False] * len(ids), -1
    for i in range(len(conversation.messages), len(messages)):
        if messages[i]["role"] == "assistant":
            opening = _render(tokenizer, conversation, messages[:i], add_generation_prompt=True)
            first = bisect_left(starts, len(_checked_head(tokenizer, opening, text)))
            last = next((k for k in range(first, len(ids)) if ids[k] in ends), None)
            if last is None:
                whole = _render(tokenizer, conversation, messages[: i + 1])
                last = bisect_left(starts, len(_checked_head(tokenizer, whole, text))) - 1
            said[first : last + 1] = [True] * (last + 1 - first)
    if messages[-1]["role"] == "assistant":
        ids, said = ids[: last + 1], said[: last + 1]
        if ids[-1] not in ends:
            ids, said = ids + written, said + [True] * len(written)
    return ids, said


def _checked_head(tokenizer: PreTrainedTokenizerBase, head: str, whole: str) -> str:
    if not whole.startswith(head):
        raise UserError(
            f"chat template of {_name(tokenizer)}: what it writes before an answer changes with the answer "
            f"({_end(head)!r} is not in {_end(whole[: len(head)])!r}), so the answer's tokens cannot be told; give it "
            "another one by chat_template, or other template_kwargs"
        )
    return head


def _render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, messages: Sequence[Message], **how: bool
) -> str:
    if tokenizer.chat_template is None:
        raise UserError(
            f"tokenizer {_name(tokenizer)} has no chat template, but the rows are messages; name one by chat_template: "
            f"a Jinja file, or {PLAIN} for the bare contents"
        )
    apply: Callable[..., Any] = tokenizer.apply_chat_template
    try:
        return apply(
            [dict(message) for message in messages],
            tools=None if conversation.tools is None else list(conversation.tools),
            tokenize=False,
            **how,
            **conversation.template_kwargs,
        )
    except Exception as error:  # a template raises what its author chose, jinja2 and `transformers` what they like
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"chat template of {_name(tokenizer)} fails: {type(error).__name__} {first}; mend the row or the template"
        ) from error


def _is_added(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Return whether a token is no part of a text; the one for unknown words is."""
    return token in tokenizer.added_tokens_decoder and token != tokenizer.unk_token_id


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _end(text: str) -> str:
    return text[-40:]
