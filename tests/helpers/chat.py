"""A tiny chat tokenizer and checkpoints with it: words, roles and turn ends are tokens of their own."""

import json
from pathlib import Path

from helpers.framed import framed_tokenizer
from helpers.tiny_checkpoints import save_policy, save_reward_model

TEMPLATE = (
    "{{ bos_token }}{% if tools %} <|tools|> {{ tools[0]['name'] }}{% endif %}"
    "{% for message in messages %} <|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %} {% generation %}{{ message['content'] }} <|end|>{% endgeneration %}"
    "{% else %} {{ message['content'] }} <|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <|assistant|>{% if quick %} ten{% endif %}{% endif %}"
)
"""Marks what an assistant says in the way of `transformers`, whose marks are the reference for ours."""

MARKS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tools|>", "<|end|>")


def chat_tokenizer(template: str | None = TEMPLATE):
    """A word-level tokenizer that puts <s> before every text by itself, as the template does."""
    tokenizer = framed_tokenizer("<s>", bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    tokenizer.chat_template = template
    return tokenizer


def save_chat_policy(folder: Path, template: str | None = TEMPLATE, **config) -> Path:
    """A random two-layer Llama whose tokenizer is the chat tokenizer; its end token is not the turn's."""
    return _with_tokenizer(save_policy, folder, template, **config)


def save_chat_reward_model(folder: Path, template: str | None = TEMPLATE, **config) -> Path:
    """A random one-label classifier with the chat tokenizer."""
    return _with_tokenizer(save_reward_model, folder, template, **config)


def _with_tokenizer(save, folder: Path, template: str | None, **config) -> Path:
    tokenizer = folder.with_name(f"{folder.name}_tokenizer")
    chat_tokenizer(template).save_pretrained(tokenizer)
    return save(folder, tokenizer, **config)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def write_jsonl(file: Path, rows) -> str:
    """Write rows, one JSON object a line, and return the file's name."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)
