"""What an engine is asked for, as JSON carries it."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from grpovi_lightning.errors import UserError

Completion = tuple[list[int], list[float]]
"""Tokens up to and including the first end token, and their log-probabilities (nats) under the policy at the sampling
temperature without filters."""


TOKEN = "GRPOVI_VLLM_TOKEN"
"""The environment variable with the secret that a server and its clients share."""

ADAPTER_CONFIG = "Adapter-Config"
"""The header with the settings of an adapter."""


def token() -> str:
    """Return the secret; raise `UserError` where there is none, or one that can be guessed."""
    found = os.environ.get(TOKEN, "")
    if len(found) < 16 or not found.isascii() or not found.isprintable() or " " in found:
        raise UserError(
            f"the environment variable {TOKEN}: got {'none' if not found else 'one that cannot serve'}, expected a "
            "secret of at least 16 ASCII characters without spaces, the same for the server and for the training; "
            f"try: export {TOKEN}=$(openssl rand -hex 16)"
        )
    return found


@dataclass(frozen=True)
class Request:
    """Completions to draw, with everything that they depend on but the weights.

    Attributes:
        prompts: P lists of tokens.
        seeds: B seeds, one of each completion; those of one prompt are adjacent.
        max_tokens: tokens that a completion may have.
        end_token_ids: tokens that end one.
        greedy: whether each token is the most probable one.
        temperature: this and the next are those of `SamplingConfig`.
    """

    prompts: list[list[int]]
    seeds: list[int]
    max_tokens: int
    end_token_ids: list[int]
    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def longest(self) -> int:
        """Return the tokens of the longest prompt with the longest completion."""
        return max(map(len, self.prompts)) + self.max_tokens


@dataclass(frozen=True)
class Versions:
    """Which weights an engine has, by their digests; None where there are none.

    Attributes:
        base: of the weights.
        adapter: of the adapter on them.
    """

    base: str | None = None
    adapter: str | None = None


def as_bytes(content: Any) -> bytes:
    """Return a value as JSON."""
    return json.dumps(content).encode()
