"""Prompts and answers that are messages instead of text, in the form that chat templates read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpovi_lightning.errors import shown

Message = Mapping[str, Any]
"""`role` and `content`, and what else the chat template reads, such as `tool_calls`."""

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """What a chat model answers: messages, before its chat template made one text of them.

    Attributes:
        messages: in their order.
        tools: JSON schemas of functions that the model may call.
        template_kwargs: further variables for chat templates, such as `enable_thinking`.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it as one text, for people."""
        return transcript(self.messages)


Prompt = str | Conversation
Answer = str | Sequence[Message]
"""A completion: text, or messages of which the last is the assistant's."""


def transcript(answer: Answer) -> str:
    r"""Return messages as one text, for people; text stays as it is.

    >>> transcript([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}])
    'user: Hi.\n\nassistant: Hello!'
    """
    if isinstance(answer, str):
        return answer
    return "\n\n".join(f"{message['role']}: {content_text(message)}" for message in answer)


def content_text(message: Message) -> str:
    """Return the text of a message: its content, or the parts of it that are text."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        return "".join(part["text"] for part in content)
    return content or ""


def answer_text(answer: Answer) -> str:
    """Return what an answer says, without the roles of its messages."""
    return answer if isinstance(answer, str) else "\n".join(map(content_text, answer))


def as_messages(text: str) -> list[Message]:
    """Return a sampled completion as the message of an assistant."""
    return [{"role": "assistant", "content": text}]


def without_gaps(messages: Sequence[Message]) -> list[Message]:
    """Return messages without the keys that are None: tables give every message the keys of all others."""
    return [{k: v for k, v in message.items() if v is not None or k == "content"} for message in messages]


def is_messages(value: Any) -> bool:
    """Return whether a value of a table is meant to be messages."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def fault_in(messages: Any, last: Sequence[str]) -> str | None:
    """Return what is wrong with messages, as "got ..., expected ..."; None where nothing is.

    Args:
        messages: a value of a table.
        last: roles that the last message may have.

    >>> fault_in([{"role": "user", "content": "Hi."}, {"role": "bot", "content": "!"}], last=["user"])
    "message 1: got the role 'bot', expected one of system, developer, user, assistant, tool"
    """
    if not is_messages(messages):
        return f"got {shown(messages)}, expected messages, each with `role` and `content`"
    for number, message in enumerate(messages):
        fault = _fault_in_message(message)
        if fault:
            return f"message {number}: {fault}"
    if messages[-1]["role"] not in last:
        return f"got a last message of the role {messages[-1]['role']!r}, expected {' or '.join(last)}"
    return None


def _fault_in_message(message: Message) -> str | None:
    role, content = message.get("role"), message.get("content")
    if role is None:
        return f"got the keys {', '.join(map(str, message))}, expected `role` and `content`"
    if role not in _ROLES:
        return f"got the role {role!r}, expected one of {', '.join(_ROLES)}"
    if isinstance(content, list | tuple):
        other = [part for part in content if not isinstance(part, Mapping) or not isinstance(part.get("text"), str)]
        return f"got {shown(other[0])} in its content, expected text" if other else None
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        return f"got {shown(content)} as content, expected text"
    if isinstance(content, str) and has_half_characters(content):
        return "got half of a surrogate pair, expected whole characters"
    return None


def has_half_characters(text: str) -> bool:
    """Return whether there is half of a surrogate pair in a text, which JSON can escape and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
