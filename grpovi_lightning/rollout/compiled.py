"""Decoding in shapes that hardly change, so that a CUDA graph or compiled code can replace Python."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.models.passes import FusedHead, SeparateHead, compiling
from grpovi_lightning.rollout.decoding import Decoder, PlainDecoder
from grpovi_lightning.rollout.sampler import Sampler, sync_interval
from grpovi_lightning.timing import phase

# Tokens before the first CUDA graph is captured: libraries set up what they need at their first calls, and that cannot
# be captured.
_EAGER_TOKENS = 3


class StaticDecoder(Decoder):
    """A decoder like `GroupDecoder` whose work and memory stay the same for `block` tokens in a row.

    On a GPU that work is captured as a CUDA graph, so that a token is one launch. The price: finished completions stay
    until all are finished, prompts are padded to a multiple of `block`, and attention reads whole blocks.

    A model that cannot be decoded by groups is decoded by `PlainDecoder`.
    """

    def __init__(self, block: int = 32) -> None:
        """Choose for how many tokens shapes stay the same."""
        at_least_one("decoder.", block=block)
        self.block = block

    def parts(self, policy: LanguageModel) -> SeparateHead | FusedHead:
        """Return what computes a token."""
        return policy.passes.parts

    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        if policy.is_sharded:
            raise UserError(f"{type(self).__name__}: got sharded weights, which it cannot gather; use GroupDecoder")
        if not policy.passes.capabilities.decodes_by_groups:
            PlainDecoder().decode(policy, prompt_ids, prompt_mask, sampler)
            return
        more = -prompt_ids.shape[1] % self.block
        prompt_ids = pad(prompt_ids, (more, 0), value=policy.pad_token_id)
        prompt_mask = pad(prompt_mask, (more, 0), value=False)
        members = len(sampler.ended) // len(prompt_ids)
        rows = torch.arange(len(sampler.ended), device=prompt_ids.device)
        with phase(keys.STEP_TIME_PREFILL):
            first, cache = policy.passes.start_groups(prompt_ids, prompt_mask, members, sampler.length, static=True)
        tokens, parts = torch.zeros_like(rows), self.parts(policy)
        positions = prompt_mask.sum(dim=1).repeat_interleave(members)

        def step() -> Tensor:
            logits = policy.passes.next_logits(tokens, positions, cache, parts)
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
    """Return the step as one launch of a CUDA graph. Capturing runs nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class CompiledDecoder(StaticDecoder):
    """A `StaticDecoder` whose forward pass of a token is compiled with `torch.compile`; needs a C++ compiler.

    It pays in long runs. Each new number of groups, of completions, or of blocks in prompt or completion is compiled
    once in a run, which takes about ten seconds. Compiled logits are rounded differently, so compare a run with runs of
    the same decoder only.
    """

    def __init__(self, block: int = 32, max_shapes: int = 64) -> None:
        """Choose how long shapes stay the same, and how many there may be.

        Args:
            block: tokens for which shapes stay the same.
            max_shapes: more are an error, because a run that compiles all the time would be slow for no visible reason.
        """
        super().__init__(block)
        at_least_one("decoder.", max_shapes=max_shapes)
        self.max_shapes = max_shapes
        self._compiled: tuple[LanguageModel, SeparateHead] | None = None

    def parts(self, policy: LanguageModel) -> SeparateHead:
        """Return the policy's parts, compiled at the first use and kept for as long as the policy is the same."""
        if self._compiled is None or self._compiled[0] is not policy:
            parts = policy.passes.parts
            if not isinstance(parts, SeparateHead):
                raise UserError(
                    f"CompiledDecoder: got a {type(policy.model).__name__}, whose output head cannot be told from its "
                    "body; use GroupDecoder"
                )
            self._compiled = (policy, parts.compiled())
        return self._compiled[1]

    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        instead = "raise decoder.max_shapes, or set a larger decoder.block so that fewer sizes occur"
        with compiling("CompiledDecoder", self.max_shapes, instead):
            super().decode(policy, prompt_ids, prompt_mask, sampler)
