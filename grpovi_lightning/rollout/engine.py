"""Prompts -> completions: prefill each prompt once, expand its cache to the group, decode."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.randomness import sampling_uniforms
from grpovi_lightning.rollout.sampling import SamplingConfig, inverse_cdf
from grpovi_lightning.structures import PromptBatch, Rollout

_DROP_SHARE = 0.25  # compacting copies the cache, so it waits until a quarter of the rows is finished


@dataclass
class _Decoding:
    """What grows or shrinks while decoding: one entry for each row that is still unfinished.

    Attributes:
        rows: [b] their places among the B sequences.
        cache: keys and values of the b rows.
        mask: [b, S + T] bool, which cache positions count.
        positions: [b] position of the next token.
        logits: [b, V] for the next token.
    """

    rows: Tensor
    cache: DynamicCache
    mask: Tensor
    positions: Tensor
    logits: Tensor
    finished: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.finished = torch.zeros(len(self.rows), dtype=torch.bool, device=self.rows.device)

    def drop_finished(self) -> None:
        keep = (~self.finished).nonzero().squeeze(1)
        self.rows, self.mask = self.rows[keep], self.mask[keep]
        self.positions, self.logits = self.positions[keep], self.logits[keep]
        self.cache.batch_select_indices(keep)
        self.finished = self.finished[keep]


class RolloutEngine:
    """Samples completions as a pure function of (weights, prompt, seed, step).

    A completion depends neither on the batch its prompt is in, nor on the batch's order, nor on how
    finished rows are dropped: each token is the inverse CDF of the filtered distribution at a uniform
    number that belongs to (seed, step, prompt, completion, position).
    """

    def __init__(self, sampling: SamplingConfig) -> None:
        """Takes the sampling settings."""
        self.sampling = sampling

    @torch.no_grad()
    def generate(self, policy: LanguageModel, prompts: PromptBatch, group_size: int, seed: int, step: int) -> Rollout:
        """Samples `group_size` completions for each prompt.

        Args:
            policy: the policy; its mode is left as it is.
            prompts: P prompts.
            group_size: G.
            seed: the run's seed.
            step: the policy step.

        Returns:
            a rollout of B = P * G completions, T = the longest of them.

        Raises:
            UserError: a prompt and the longest completion exceed the model's positions.
        """
        length = self.sampling.max_completion_length
        prompt_ids, prompt_mask = policy.encode_prompts(prompts.texts)
        self._check_positions(policy, prompts, prompt_mask)
        uniforms = sampling_uniforms(seed, step, prompts.indices, group_size, length).to(prompt_ids.device)
        total = len(prompts) * group_size
        ids = torch.full((total, length), policy.pad_token_id, dtype=torch.long, device=prompt_ids.device)
        logprobs = torch.zeros((total, length), device=prompt_ids.device)
        lengths = torch.full((total,), length, device=prompt_ids.device)
        ends = torch.tensor(policy.end_token_ids, device=prompt_ids.device)
        ended = torch.zeros(total, dtype=torch.bool, device=prompt_ids.device)

        state = self._prefill(policy, prompt_ids, prompt_mask, group_size)
        for t in range(length):
            tokens, chosen = self._draw(state.logits, uniforms[state.rows, t], prompt_ids)
            live = ~state.finished
            ids[state.rows[live], t] = tokens[live]
            logprobs[state.rows[live], t] = chosen[live]
            newly = live & torch.isin(tokens, ends)
            lengths[state.rows[newly]] = t + 1
            ended[state.rows[newly]] = True
            state.finished |= newly
            n_finished = int(state.finished.sum())
            if n_finished == len(state.rows) or t + 1 == length:
                break
            if n_finished > _DROP_SHARE * len(state.rows):
                tokens = tokens[~state.finished]
                state.drop_finished()
            self._advance(policy, state, tokens)

        longest = int(lengths.max())
        mask = torch.arange(longest, device=ids.device) < lengths[:, None]
        ids = ids[:, :longest]
        rows = [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]
        texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return Rollout(
            prompts=prompts,
            group_size=group_size,
            step=step,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=ids,
            completion_mask=mask,
            old_logprobs=logprobs[:, :longest],
            truncated=~ended,
            texts=texts,
        )

    def _check_positions(self, policy: LanguageModel, prompts: PromptBatch, prompt_mask: Tensor) -> None:
        limit = getattr(policy.model.config, "max_position_embeddings", None)
        longest, row = prompt_mask.sum(dim=1).max(dim=0)
        if limit is not None and int(longest) + self.sampling.max_completion_length > limit:
            raise UserError(
                f"prompt {prompts.texts[int(row)][:60]!r} has {int(longest)} tokens; with max_completion_length "
                f"{self.sampling.max_completion_length} that exceeds the model's {limit} positions; "
                "remove the row or lower max_completion_length"
            )

    def _draw(self, logits: Tensor, uniforms: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Next tokens [b] and their log-probabilities [b] under the temperature-scaled, unfiltered policy."""
        scaled = logits.float() / self.sampling.temperature
        # The filters in use look at the scores only; `transformers` passes them the context all the same.
        filtered = self.sampling.filters()(context, scaled)  # type: ignore[arg-type]
        tokens = inverse_cdf(filtered, uniforms)
        return tokens, scaled.log_softmax(dim=-1).gather(1, tokens[:, None]).squeeze(1)

    @staticmethod
    def _prefill(policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, group_size: int) -> _Decoding:
        cache = DynamicCache(config=policy.model.config)
        logits = policy.prefill(prompt_ids, prompt_mask, cache)
        cache.batch_repeat_interleave(group_size)
        return _Decoding(
            rows=torch.arange(len(prompt_ids) * group_size, device=prompt_ids.device),
            cache=cache,
            mask=prompt_mask.repeat_interleave(group_size, dim=0),
            positions=prompt_mask.sum(dim=1).repeat_interleave(group_size),
            logits=logits.repeat_interleave(group_size, dim=0),
        )

    @staticmethod
    def _advance(policy: LanguageModel, state: _Decoding, tokens: Tensor) -> None:
        """Feeds the tokens [b] just drawn and puts the next logits into the state."""
        state.mask = torch.cat([state.mask, torch.ones_like(state.mask[:, :1])], dim=1)
        output = policy.model(
            input_ids=tokens[:, None],
            attention_mask=state.mask.long(),
            position_ids=state.positions[:, None],
            past_key_values=state.cache,
            use_cache=True,
        )
        state.positions = state.positions + 1
        state.logits = output.logits[:, -1]
