"""The forward passes: over whole sequences, over prompts once for their group, and token by token."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from grpovi_lightning.models.passes.cache_layers import ExpandedLayer, PrefixLayer
from grpovi_lightning.models.passes.capabilities import Capabilities
from grpovi_lightning.models.passes.group_cache import GroupCache, attention_by_groups
from grpovi_lightning.models.passes.output_head import FusedHead, SeparateHead
from grpovi_lightning.ops import position_ids
from grpovi_lightning.structures import Rollout


class ForwardPasses:
    """A `transformers` causal LM, run in the ways that its capabilities allow.

    Attributes:
        model: the model.
        capabilities: what it can do.
        parts: the model in two steps; `parts.logits` reads the states that the passes return.
    """

    def __init__(self, model: PreTrainedModel, capabilities: Capabilities) -> None:
        self.model, self.capabilities = model, capabilities
        # Fields of their own: `torch.compile` would take in the whole dataclass where it meets one.
        self.parts, self._windows = capabilities.parts, capabilities.windows
        self._checkpoints = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())

    @property
    def runs_prompts_once(self) -> bool:
        """Whether the model can run each prompt once for its whole group.

        Not with gradient checkpointing: `transformers` drops caches there.
        """
        return self.capabilities.shares_prefix and not (self._checkpoints and self.model.training)

    def plain_states(self, rollout: Rollout) -> Tensor:
        """Return the states that predict the completions, [B, T, D]; prompt and completion are one sequence a row."""
        prompts = rollout.prompt_ids.repeat_interleave(rollout.group_size, dim=0)
        mask = _sequence_mask(rollout.prompt_mask, rollout.completion_mask)
        positions = {"position_ids": position_ids(mask)} if self.capabilities.takes_positions else {}
        states = self.parts.states(
            rollout.completion_ids.shape[1] + 1,
            input_ids=torch.cat([prompts, rollout.completion_ids], dim=1),
            attention_mask=mask.long(),
            use_cache=False,
            **positions,
        )
        return states[:, :-1]

    def shared_prefix_states(self, rollout: Rollout) -> Tensor:
        """Return the same states, [B, T, D], but run prompts once, and completions against the expanded cache."""
        ids, mask = rollout.grouped(rollout.completion_ids), rollout.grouped(rollout.completion_mask)
        with self.generating():
            return self.group_states(rollout.prompt_ids, rollout.prompt_mask, ids, mask)

    def group_states(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
    ) -> Tensor:
        """Compute `shared_prefix_states` [B, T, D] from tensors alone, so that it can be compiled.

        Prompts are [P, S], left-padded, and completions [P, G, T].
        """
        members, length = completion_ids.shape[1:]
        first, prefix = self.prefill(prompt_ids, prompt_mask)
        # The prompt's pass predicts the first token of a completion, and each token the one behind it.
        first = first.repeat_interleave(members, dim=0)[:, None]
        if length == 1:
            return first
        mask = _sequence_mask(prompt_mask, completion_mask.flatten(0, 1))
        cache = Cache(layers=[ExpandedLayer(layer, members) for layer in prefix.layers])  # type: ignore[arg-type]
        rest = self.parts.states(
            length - 1,
            input_ids=completion_ids.flatten(0, 1)[:, :-1],
            attention_mask=mask[:, :-1].long(),
            position_ids=position_ids(mask)[:, prompt_ids.shape[1] : -1],
            use_cache=True,
            **{self.parts.cache_argument: cache},
        )
        return torch.cat([first, rest], dim=1)

    def prefill(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Cache]:
        """Run prompts, [P, S] left-padded ids and bool mask.

        Returns:
            the states that predict the first completion token, [P, D], and the prompts' cache.
        """
        cache = Cache(layers=[PrefixLayer(window) for window in self._windows])
        states = self.parts.states(
            1,
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            use_cache=True,
            **{self.parts.cache_argument: cache},
        )
        return states[:, -1], cache

    @torch.no_grad()
    def start_groups(
        self, ids: Tensor, mask: Tensor, members: int, length: int, static: bool = False
    ) -> tuple[Tensor, GroupCache]:
        """Run prompts, and make room for the completions behind them.

        Args:
            ids: [P, S] left-padded.
            mask: [P, S] bool.
            members: completions of each prompt.
            length: tokens that a completion may have.
            static: whether no shape may change from token to token.

        Returns:
            logits [P, V] of the first token, and the cache for `next_logits`.
        """
        with self.generating():
            states, prefix = self.prefill(ids, mask)
        return self.parts.logits(states), GroupCache(prefix, mask, members, length, static)

    @torch.no_grad()
    def next_logits(
        self, tokens: Tensor, positions: Tensor, cache: GroupCache, parts: SeparateHead | FusedHead | None = None
    ) -> Tensor:
        """Feed one token to each completion in the cache, which grows by it, and return the logits of the next, [b, V].

        Tokens [b] come with their positions [b] in their sequences. `parts` computes; None: the model as it is.
        """
        parts = parts or self.parts
        inputs = {"input_ids": tokens[:, None], "position_ids": positions[:, None], parts.cache_argument: cache}
        with self.generating(), attention_by_groups(self.model, cache):
            states = parts.states(1, use_cache=True, **inputs)
        cache.advance()
        return parts.logits(states[:, -1])

    def generating(self) -> AbstractContextManager[None]:
        """Have a model with gradient checkpointing keep its cache, which it would drop in training mode."""
        return evaluating(self.model) if self.model.training and self._checkpoints else nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and give every module its own mode back afterwards."""
    # `model.train()` would not do: it overwrites the modes of parts that were put into another one on purpose.
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def _sequence_mask(prompt_mask: Tensor, completion_mask: Tensor) -> Tensor:
    """Return [B, S + T] bool, prompt and completion of every row, from [P, S] and [B, T]."""
    prompts = prompt_mask.repeat_interleave(len(completion_mask) // len(prompt_mask), dim=0)
    return torch.cat([prompts, completion_mask], dim=1)
