"""Decoding in shapes that hardly change, which a GPU or a compiler can do without the Python interpreter."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.models.compiled_passes import compiling
from grpovi_lightning.models.output_head import Split, Whole
from grpovi_lightning.rollout.decoding import Decoder, PlainDecoder, sync_interval
from grpovi_lightning.rollout.sampler import Sampler
from grpovi_lightning.timing import phase

_EAGER_TOKENS = 3
"""Before the first CUDA graph is captured, so that libraries have set up what they need."""


class StaticDecoder(Decoder):
    """Groups as in `GroupDecoder`, but for `block` tokens in a row the work and its memory are the same.

    On a GPU that work is captured as a CUDA graph, so that a token is one launch. Finished completions stay until all
    are finished, prompts are padded to a multiple of `block`, and attention reads whole blocks: the price of shapes
    that do not change.

    A model that does not allow groups goes the way of `PlainDecoder`.
    """

    def __init__(self, block: int = 32) -> None:
        """Sets for how many tokens shapes stay."""
        if block < 1:
            raise UserError(f"decoder.block: got {block}, expected at least 1")
        self.block = block

    def parts(self, policy: LanguageModel) -> Split | Whole:
        """What computes a token."""
        return policy.capabilities.parts

    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        """See `Decoder`."""
        if policy.is_sharded:
            raise UserError(f"{type(self).__name__}: got sharded weights, which it cannot gather; use GroupDecoder")
        if not policy.capabilities.decodes_by_groups:
            PlainDecoder().decode(policy, prompt_ids, prompt_mask, sampler)
            return
        more = -prompt_ids.shape[1] % self.block
        prompt_ids = pad(prompt_ids, (more, 0), value=policy.pad_token_id)
        prompt_mask = pad(prompt_mask, (more, 0), value=False)
        members = len(sampler.ended) // len(prompt_ids)
        rows = torch.arange(len(sampler.ended), device=prompt_ids.device)
        with phase(keys.STEP_TIME_PREFILL):
            first, cache = policy.start_groups(prompt_ids, prompt_mask, members, sampler.length, static=True)
        tokens, parts = torch.zeros_like(rows), self.parts(policy)
        positions = prompt_mask.sum(dim=1).repeat_interleave(members)

        def step() -> Tensor:
            logits = policy.next_logits(tokens, positions, cache, parts)
            positions.add_(1)
            return logits

        with phase(keys.STEP_TIME_DECODE):
            logits, run = first.repeat_interleave(members, dim=0), step
            for t in range(sampler.length):
                drawn = sampler.draw(logits, rows, t)
                done = (t + 1) % sync_interval(rows) == 0 and bool(sampler.ended.all())
                if done or t + 1 == sampler.length:
                    break
                tokens.copy_(drawn)
                if t % self.block == 0:
                    cache.show(min(t + self.block, sampler.length))
                if tokens.device.type == "cuda" and (t == _EAGER_TOKENS or (t > 0 and t % self.block == 0)):
                    run = captured(step)
                logits = run()


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same step as one launch of a CUDA graph. Capturing runs nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class CompiledDecoder(StaticDecoder):
    """The same, but the forward pass of a token is compiled with `torch.compile`, which also needs a C++ compiler.

    It pays in long runs: each new number of groups, of completions, or of blocks in prompt or completion is compiled
    once in a run, which takes about ten seconds. Compiled logits are rounded otherwise: compare a run with runs of the
    same decoder.
    """

    def __init__(self, block: int = 32, max_shapes: int = 64) -> None:
        """Sets the shapes.

        Args:
            block: see `StaticDecoder`.
            max_shapes: more than these are an error: a run that compiles all the time would be slow for no visible
                reason.
        """
        super().__init__(block)
        if max_shapes < 1:
            raise UserError(f"decoder.max_shapes: got {max_shapes}, expected at least 1")
        self.max_shapes = max_shapes
        self._compiled: tuple[LanguageModel, Split] | None = None

    def parts(self, policy: LanguageModel) -> Split:
        """The policy's, compiled when they are first used."""
        if self._compiled is None or self._compiled[0] is not policy:
            parts = policy.capabilities.parts
            if not isinstance(parts, Split):
                raise UserError(
                    f"CompiledDecoder: got a {type(policy.model).__name__}, whose output head cannot be told from its "
                    "body; use GroupDecoder"
                )
            self._compiled = (policy, parts.compiled())
        return self._compiled[1]

    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        """See `Decoder`."""
        instead = "raise decoder.max_shapes, or set a larger decoder.block so that fewer sizes occur"
        with compiling("CompiledDecoder", self.max_shapes, instead):
            super().decode(policy, prompt_ids, prompt_mask, sampler)
