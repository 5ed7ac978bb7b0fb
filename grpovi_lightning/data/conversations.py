"""Rows of tables whose prompts and answers are messages, in the formats that TRL reads, told by their content.

| rows | columns |
|---|---|
| prompts | `prompt` |
| demonstrations | `prompt` and `completion`, or `messages`: all that an assistant says is imitated |
| preferences | `prompt`, `chosen` and `rejected`, or the two alone, which then begin with the prompt |

A prompt is text or a list of messages, each with `role` and `content`; so are answers. The columns `tools` (JSON
schemas of functions, or the JSON text of them) and `chat_template_kwargs` go to the chat template.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpovi_lightning.conversations import Answer, Conversation, Message, Prompt, fault_in, is_messages, without_gaps
from grpovi_lightning.errors import UserError

ASKING = ("user", "tool")
"""Roles that the last message of a prompt may have: an assistant answers these."""


@dataclass(frozen=True)
class Conversations:
    """How rows become conversations.

    Attributes:
        system_prompt: opens every conversation that has no system message of its own.
        text_as_messages: whether text becomes messages: a prompt the user's, an answer the assistant's.
        template_kwargs: variables for chat templates, such as `enable_thinking: false`; those of a row's column
            `chat_template_kwargs` come first.
    """

    system_prompt: str | None = None
    text_as_messages: bool = False
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def prompt(self, value: Any, row: Mapping[str, Any]) -> Prompt:
        """Return the prompt that a row's value says; no messages at all, where the row is one whole conversation."""
        if isinstance(value, str) and not self.text_as_messages:
            return value
        messages = [{"role": "user", "content": value}] if isinstance(value, str) else without_gaps(value)
        opens = bool(messages) and messages[0]["role"] in ("system", "developer")
        if self.system_prompt is not None and not opens:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        kwargs = self.template_kwargs | (row.get("chat_template_kwargs") or {})
        return Conversation(messages, _parsed(row.get("tools")), kwargs)

    def answer(self, value: Any, prompt: Prompt) -> Answer:
        """Return the answer that a row's value says, in the form of its prompt."""
        if not isinstance(value, str):
            return without_gaps(value)
        return value if isinstance(prompt, str) else [{"role": "assistant", "content": value}]

    def check_of_text(self, what: str) -> None:
        """Raise `UserError` for settings that have no effect on prompts that are text."""
        if not self.text_as_messages and (self.system_prompt is not None or self.template_kwargs):
            raise UserError(
                f"{what}: its prompts are text, on which system_prompt and template_kwargs have no effect; set "
                "conversations.text_as_messages to make each a user's message"
            )


def fault_in_prompt(value: Any) -> str | None:
    """Return what is wrong with a prompt that is not text."""
    return fault_in(value, ASKING)


def fault_in_answer(value: Any) -> str | None:
    """Return what is wrong with an answer that is not text."""
    return fault_in(value, ("assistant",))


def shared_opening(chosen: Any, rejected: Any) -> tuple[Any, Any, Any] | None:
    """Return the prompt with which two answers begin, and the rest of both; None where they share none.

    Texts are parted at the last space before they differ, as TRL parts them.

    >>> shared_opening("Two and two? Four.", "Two and two? Five.")
    ('Two and two?', ' Four.', ' Five.')
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        return None
    pairs = zip(chosen, rejected, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        shared = chosen.rfind(" ", 0, shared + 1) if shared else 0
    else:  # the prompt ends where an assistant begins to answer
        shared = max((i for i in range(1, shared + 1) if chosen[i - 1].get("role") in ASKING), default=0)
    return None if shared <= 0 else (chosen[:shared], chosen[shared:], rejected[shared:])


def is_conversational(values: Sequence[Any]) -> bool:
    """Return whether the prompts of a table are messages: the first one says so."""
    return bool(values) and is_messages(values[0])


def _parsed(tools: Any) -> Sequence[Message] | None:
    return json.loads(tools) if isinstance(tools, str) else tools
