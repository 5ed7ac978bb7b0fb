"""Decoders: most compute the logits of each next token, from which the sampler draws."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import ImportanceSampling
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.models.sharding import largest_together
from grpovi_lightning.rollout.sampler import Sampler, sync_interval
from grpovi_lightning.rollout.sampling import SamplingConfig
from grpovi_lightning.timing import phase


class Decoder(ABC):
    """A way to complete prompts.

    Those that have the sampler draw each token give the same completions, up to the rounding of logits. One that draws
    by itself hands whole completions to the sampler: they follow the same distribution.
    """

    draws_ahead = False
    """Whether it draws the completions of the next step while the policy is trained, once `begin` was called."""

    @property
    def correction(self) -> ImportanceSampling | None:
        """What corrects updates for tokens that another implementation of the policy drew; None: nothing has to."""
        return None

    def check(self, source: CausalLMSource, sampling: SamplingConfig) -> None:  # noqa: B027  most have nothing to check
        """Raise `UserError` where it can be told before anything is loaded that decoding would fail."""

    def check_processes(self, number: int) -> None:  # noqa: B027
        """Raise `UserError` where it cannot work in that many training processes."""

    def run(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        """Decode with the policy's weights at hand, wherever they are; arguments are those of `decode`."""
        with policy.weights.gathered():
            policy(self.decode, policy, prompt_ids, prompt_mask, sampler)

    @abstractmethod
    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        """Draw every completion of left-padded prompts [P, S] to its end, or to the sampler's length.

        The sampler keeps the B completions, of which those of one prompt are adjacent.
        """

    def begin(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        """Begin to draw by the policy as it is now what `run` is asked for later; arguments are those of `decode`."""
        raise NotImplementedError(f"{type(self).__name__} does not draw ahead")

    def drawn_ahead(self) -> str | None:
        """Return what was drawn ahead, for a checkpoint; None where nothing was. All processes call it together."""
        return None

    def take_drawn_ahead(self, state: str | None) -> None:  # noqa: B027
        """Go on with what `drawn_ahead` returned."""


class GroupDecoder(Decoder):
    """The decoder that runs each prompt once and drops finished completions.

    The attention of a whole group to its prompt is one matrix product. A model that does not allow this is decoded by
    `PlainDecoder`.
    """

    def __init__(self, drop_share: float = 0.25) -> None:
        """Choose how often rows are dropped.

        Args:
            drop_share: finished completions are dropped once that spares more than this share of the rows. Dropping
                copies the cache of the others, so it does not pay for each single one.
        """
        if not 0.0 <= drop_share <= 1.0:
            raise UserError(f"decoder.drop_share: got {drop_share}, expected between 0 and 1")
        self.drop_share = drop_share

    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        if not policy.passes.capabilities.decodes_by_groups:
            PlainDecoder().decode(policy, prompt_ids, prompt_mask, sampler)
            return
        interval = sync_interval(prompt_ids)
        members = len(sampler.ended) // len(prompt_ids)
        rows = torch.arange(len(sampler.ended), device=prompt_ids.device).view(-1, members)
        starts = prompt_mask.sum(dim=1)
        with phase(keys.STEP_TIME_PREFILL):
            first, cache = policy.passes.start_groups(prompt_ids, prompt_mask, members, sampler.length)
            logits = first.repeat_interleave(members, dim=0)
        with phase(keys.STEP_TIME_DECODE):
            for t in range(sampler.length):
                tokens = sampler.draw(logits, rows.flatten(), t)
                if t + 1 == sampler.length:
                    break
                if (t + 1) % interval == 0:
                    unfinished = ~sampler.ended[rows]
                    sizes = [size for size in unfinished.sum(dim=1).tolist() if size > 0]
                    if not largest_together(policy.weights, len(sizes)):
                        break
                    if sizes and len(sizes) * max(sizes) < (1.0 - self.drop_share) * rows.numel():
                        groups, kept = still_needed(unfinished)
                        tokens = tokens.view_as(rows)[groups[:, None], kept].flatten()
                        rows, starts = rows[groups[:, None], kept], starts[groups]
                        cache.keep(groups, kept)
                positions = (starts + t).repeat_interleave(rows.shape[1])
                logits = policy.passes.next_logits(tokens, positions, cache)


def still_needed(unfinished: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the completions that stay, the same number in all groups, because tensors are rectangular.

    Groups without an unfinished completion go. Of each other group all unfinished completions stay, and as many
    finished ones as bring it to the size of the largest. `unfinished` is [P, G] bool, true somewhere.

    Returns:
        groups [P'], and members [P', G'] of each, unfinished ones first.
    """
    groups = unfinished.any(dim=1).nonzero().squeeze(1)
    largest = int(unfinished.sum(dim=1).max())
    members = unfinished[groups].int().argsort(dim=1, descending=True, stable=True)[:, :largest]
    return groups, members


class PlainDecoder(Decoder):
    """The generation of `transformers`, which knows every kind of cache; each completion runs its own prompt."""

    @torch.no_grad()
    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        members = len(sampler.ended) // len(prompt_ids)
        config = GenerationConfig(
            max_new_tokens=sampler.length,
            do_sample=False,
            eos_token_id=policy.end_token_ids,
            pad_token_id=policy.pad_token_id,
        )
        # What `config` leaves open, `transformers` takes from the model's own one, and that may filter or stop as well.
        own, policy.model.generation_config = policy.model.generation_config, GenerationConfig()
        try:
            with policy.passes.generating(), phase(keys.STEP_TIME_DECODE):
                policy.model.generate(  # type: ignore[operator]
                    prompt_ids.repeat_interleave(members, dim=0),
                    attention_mask=prompt_mask.repeat_interleave(members, dim=0).long(),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([_Drawn(sampler, prompt_ids.shape[1])]),
                    synced_gpus=policy.weights.together,
                )
        finally:
            policy.model.generation_config = own


class _Drawn(LogitsProcessor):
    """A processor that leaves the token which the sampler draws as the only possible one."""

    def __init__(self, sampler: Sampler, prompt_length: int) -> None:
        self.sampler, self.prompt_length = sampler, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        rows = torch.arange(len(scores), device=scores.device)
        tokens = self.sampler.draw(scores, rows, input_ids.shape[1] - self.prompt_length)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)
