"""Frozen batches that travel between the rooms, and the axis legend of the whole package.

| letter | axis |
|---|---|
| P | prompts in the batch |
| G | completions per prompt: the group (`group_size`) |
| B | sequences, B = P * G, group-major: the rows of one prompt are adjacent |
| S, T | prompt tokens (left-padded), completion tokens (right-padded) |
| V, D | vocabulary, features |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from grpovi_lightning.conversations import Prompt


@dataclass(frozen=True)
class PromptBatch:
    """Prompts, with the columns that reward functions read.

    Attributes:
        contents: P prompts, all text or all conversations.
        indices: [P] int64 stable number of each prompt; it seeds the prompt's random numbers.
        columns: name -> P values, handed to reward functions as keyword arguments.
        spare: further prompts of a training step, for a module that replaces some; or None.
    """

    contents: Sequence[Prompt]
    indices: Tensor
    columns: Mapping[str, Sequence[Any]]
    spare: "PromptBatch | None" = None

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def texts(self) -> list[str]:
        """Each prompt as one text, for people; what a model reads of a conversation is its chat template's."""
        return list(map(str, self.contents))

    def select(self, prompts: Sequence[int]) -> Self:
        """Return the prompts at these places, without spare ones."""
        return replace(
            self,
            contents=[self.contents[p] for p in prompts],
            indices=self.indices[list(prompts)],
            columns={name: [values[p] for p in prompts] for name, values in self.columns.items()},
            spare=None,
        )

    @staticmethod
    def concatenate(parts: Sequence["PromptBatch"]) -> "PromptBatch":
        """Return batches with the same columns as one, without spare prompts."""
        return PromptBatch(
            contents=[content for part in parts for content in part.contents],
            indices=torch.cat([part.indices for part in parts]),
            columns={name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns},
        )

    def to(self, device: torch.device | str, **_: Any) -> Self:
        """Move the tensors to `device`; Lightning calls this for every batch."""
        spare = None if self.spare is None else self.spare.to(device)
        return replace(self, indices=self.indices.to(device), spare=spare)


@dataclass(frozen=True)
class RunProgress:
    """How far a run is, under the names of the state that TRL hands to reward functions.

    Attributes:
        step: training steps done; one is a rollout with its updates.
        global_step: updates of the policy done.
        max_steps: updates that the run is going to make.
        epoch: passes over the training prompts done, with fractions; 0 where their number is not known.
    """

    step: int
    global_step: int
    max_steps: int
    epoch: float


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
        truncated: [B] bool, whether there is no end token within `max_completion_length`.
        texts: B decoded completions without special tokens.
        ref_logprobs: [B, T] float32 of the reference policy, 0 where masked, or None.
        progress: how far the run is, or None outside one.
        seed: the seed of the sampling, or None where no policy sampled.
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
    progress: RunProgress | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        rows = len(self.prompts) * self.group_size
        shape = self.completion_ids.shape
        assert shape[0] == rows == len(self.texts) == len(self.truncated), "B = P * G rows expected"
        assert shape == self.completion_mask.shape == self.old_logprobs.shape, "completion tensors are [B, T]"
        assert self.ref_logprobs is None or self.ref_logprobs.shape == shape, "ref_logprobs are [B, T]"

    @staticmethod
    def of_texts(prompts: PromptBatch, texts: Sequence[str]) -> "Rollout":
        """Return a completion of each prompt that no policy sampled: text alone, which ended, without tokens."""
        no_ids, no_mask = torch.zeros(len(texts), 0, dtype=torch.long), torch.zeros(len(texts), 0, dtype=torch.bool)
        return Rollout(
            prompts=prompts,
            group_size=1,
            step=0,
            prompt_ids=no_ids,
            prompt_mask=no_mask,
            completion_ids=no_ids,
            completion_mask=no_mask,
            old_logprobs=torch.zeros(len(texts), 0),
            truncated=torch.zeros(len(texts), dtype=torch.bool),
            texts=texts,
        )

    @property
    def has_tokens(self) -> bool:
        """Whether a policy sampled it; the answers of a table are text alone."""
        return self.completion_ids.shape[1] > 0

    @property
    def lengths(self) -> Tensor:
        """[B] numbers of completion tokens, the end token included."""
        return self.completion_mask.sum(dim=1)

    def grouped(self, values: Tensor) -> Tensor:
        """Reshape [B, ...] to [P, G, ...]."""
        return values.unflatten(0, (len(self.prompts), self.group_size))

    def rows(self, prompts: Sequence[int]) -> Tensor:
        """Return the places [p * G] of these p prompts' completions among the B rows."""
        first = torch.tensor(prompts, dtype=torch.long, device=self.completion_ids.device) * self.group_size
        return (first[:, None] + torch.arange(self.group_size, device=first.device)).flatten()

    def rows_at(self, places: Tensor) -> Tensor:
        """Return the rows [P * m] of the completions at these places [P, m] in their groups."""
        first = torch.arange(len(self.prompts), device=places.device) * self.group_size
        return (first[:, None] + places).flatten()

    def select(self, prompts: Sequence[int]) -> Self:
        """Return some prompts with their groups, without the padding that only the others needed."""
        width = int(self.prompt_mask[list(prompts)].sum(dim=1).max())
        return replace(
            self,
            prompts=self.prompts.select(prompts),
            prompt_ids=self.prompt_ids[list(prompts), -width:],
            prompt_mask=self.prompt_mask[list(prompts), -width:],
            **self._completions(self.rows(prompts)),
        )

    def keep(self, places: Tensor) -> Self:
        """Return all prompts with the completions at these places [P, m] in their groups, which then have m members."""
        return replace(self, group_size=places.shape[1], **self._completions(self.rows_at(places)))

    def _completions(self, rows: Tensor) -> dict[str, Any]:
        """Return what is known of some completions, without the padding that only the others needed."""
        length = int(self.lengths[rows].max())
        return {
            "completion_ids": self.completion_ids[rows, :length],
            "completion_mask": self.completion_mask[rows, :length],
            "old_logprobs": self.old_logprobs[rows, :length],
            "truncated": self.truncated[rows],
            "texts": [self.texts[row] for row in rows.tolist()],
            "ref_logprobs": None if self.ref_logprobs is None else self.ref_logprobs[rows, :length],
        }

    @staticmethod
    def concatenate(parts: Sequence["Rollout"]) -> "Rollout":
        """Return rollouts of the same step and group size as one, all padded to the longest."""
        width = max(part.prompt_ids.shape[1] for part in parts)
        length = max(part.completion_ids.shape[1] for part in parts)

        def prompts(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([pad(tensor, (width - tensor.shape[1], 0)) for tensor in tensors])

        def completions(tensors: Sequence[Tensor | None]) -> Tensor | None:
            known = [tensor for tensor in tensors if tensor is not None]
            return torch.cat([pad(tensor, (0, length - tensor.shape[1])) for tensor in known]) if known else None

        joined = {
            name: completions([getattr(part, name) for part in parts])
            for name in ("completion_ids", "completion_mask", "old_logprobs", "ref_logprobs")
        }
        return replace(
            parts[0],
            prompts=PromptBatch.concatenate([part.prompts for part in parts]),
            prompt_ids=prompts([part.prompt_ids for part in parts]),
            prompt_mask=prompts([part.prompt_mask for part in parts]),
            truncated=torch.cat([part.truncated for part in parts]),
            texts=[text for part in parts for text in part.texts],
            **joined,
        )

    def to(self, device: torch.device | str) -> Self:
        """Move every tensor to `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in values.items() if isinstance(v, Tensor | PromptBatch)})


OnCompletion = Callable[[Rollout, int], None]
"""Is told of a completion that has ended while others are still drawn: a rollout of it, and its place in its group."""


@dataclass(frozen=True)
class Experience:
    """A rollout with its advantages: what the policy learns from.

    Attributes:
        rollout: the completions.
        advantages: [B].
        loss_mask: [B, T] bool, the tokens that are trained on; all false for completions that are left out.
        old_logprobs: [B, T] of the policy before the first update on this rollout, 0 where masked; None: those of
            the update's own forward pass.
        sampling_weights: [B, T] factors that correct for a sampler that differs from the trained policy, or None.
        selected: [B, T] bool, the tokens on which the policy loss is taken, penalties apart; None: all.
    """

    rollout: Rollout
    advantages: Tensor
    loss_mask: Tensor
    old_logprobs: Tensor | None
    sampling_weights: Tensor | None = None
    selected: Tensor | None = None

    def groups_with_advantage(self) -> Tensor:
        """Return [P] bool: which groups have a completion that is trained on with an advantage other than 0."""
        trained = torch.where(self.loss_mask.any(dim=1), self.advantages, 0.0)
        return self.rollout.grouped(trained.abs()).amax(dim=1) > 0

    def select(self, prompts: Sequence[int]) -> Self:
        """Return some prompts with their groups, cut as `Rollout.select` cuts them."""
        part, rows = self.rollout.select(prompts), self.rollout.rows(prompts)
        length = part.completion_ids.shape[1]

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows, :length]

        return replace(
            self,
            rollout=part,
            advantages=self.advantages[rows],
            loss_mask=self.loss_mask[rows, :length],
            old_logprobs=cut(self.old_logprobs),
            sampling_weights=cut(self.sampling_weights),
            selected=cut(self.selected),
        )
