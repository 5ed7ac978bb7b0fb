"""Frozen batches that travel between the rooms, and the axis legend of the whole package.

| letter | axis |
|---|---|
| P | prompts in the batch |
| G | completions per prompt: the group (`group_size`) |
| B | sequences, B = P * G, group-major: the rows of one prompt are adjacent |
| S, T | prompt tokens (left-padded), completion tokens (right-padded) |
| V, D | vocabulary, features |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


def _move(value: Any, device: torch.device | str) -> Any:
    return value.to(device) if isinstance(value, Tensor | PromptBatch) else value


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as text, with the columns that reward functions read.

    Attributes:
        texts: P prompts.
        indices: [P] stable number of each prompt; it seeds the prompt's random numbers.
        columns: name -> P values, handed to reward functions as keyword arguments.
    """

    texts: Sequence[str]
    indices: Tensor
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.texts)

    def to(self, device: torch.device | str, **_: Any) -> Self:
        """Moves the tensors; Lightning calls this for every batch."""
        return replace(self, indices=self.indices.to(device))


@dataclass(frozen=True)
class Rollout:
    """Completions sampled for a batch of prompts, and what is known about them.

    Attributes:
        prompts: the P prompts.
        group_size: G.
        step: the policy step that seeded the sampling.
        prompt_ids: [P, S] left-padded.
        prompt_mask: [P, S] bool.
        completion_ids: [B, T] right-padded; the end token is included.
        completion_mask: [B, T] bool, true up to and including the first end token.
        old_logprobs: [B, T] float32 log-probabilities of the sampling policy (temperature applied, before
            top-k and the like), 0 where masked.
        truncated: [B] bool, no end token within `max_completion_length`.
        texts: B decoded completions without special tokens.
        ref_logprobs: [B, T] float32 of the reference policy, 0 where masked, or None.
    """

    prompts: PromptBatch
    group_size: int
    step: int
    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    old_logprobs: Tensor
    truncated: Tensor
    texts: Sequence[str]
    ref_logprobs: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.prompts) * self.group_size
        shape = self.completion_ids.shape
        assert shape[0] == rows == len(self.texts) == len(self.truncated), "B = P * G rows expected"
        assert shape == self.completion_mask.shape == self.old_logprobs.shape, "completion tensors are [B, T]"

    @property
    def lengths(self) -> Tensor:
        """[B] completion tokens, the end token included."""
        return self.completion_mask.sum(dim=1)

    def grouped(self, values: Tensor) -> Tensor:
        """[B, ...] -> [P, G, ...]."""
        return values.unflatten(0, (len(self.prompts), self.group_size))

    def with_reference(self, ref_logprobs: Tensor) -> Self:
        """The same rollout with the reference policy's log-probabilities [B, T]."""
        return replace(self, ref_logprobs=ref_logprobs)

    def to(self, device: torch.device | str) -> Self:
        """Moves every tensor to `device`."""
        return replace(self, **{field.name: _move(getattr(self, field.name), device) for field in fields(self)})
