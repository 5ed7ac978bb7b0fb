"""Sampling completions for a batch of prompts."""

from functools import partial

import torch
from torch import Tensor

from grpovi_lightning.models import LanguageModel
from grpovi_lightning.randomness import sampling_uniforms
from grpovi_lightning.rollout.decoding import Decoder, GroupDecoder
from grpovi_lightning.rollout.sampler import Sampler
from grpovi_lightning.rollout.sampling import SamplingConfig, TokenChoice, inverse_cdf
from grpovi_lightning.structures import OnCompletion, PromptBatch, Rollout


class RolloutEngine:
    """Samples completions as a pure function of (weights, prompt, seed, step).

    Each token is the inverse CDF of the filtered distribution at a uniform number that belongs to (seed, step, prompt,
    completion, position). So a completion depends neither on the batch that its prompt is in, nor on the batch's order,
    nor on when finished rows are dropped. With `most_probable` as choice, it does not depend on the number either.

    A decoder that draws by itself, such as `VLLMDecoder`, has a seed for each completion instead, which belongs to the
    same coordinates.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        decoder: Decoder | None = None,
        choose: TokenChoice = inverse_cdf,
        on_completion: OnCompletion | None = None,
    ) -> None:
        """Say how completions are sampled.

        Args:
            sampling: the settings.
            decoder: default `GroupDecoder`. One that lets the sampler draw changes the time, and completions by
                rounding only.
            choose: how a token is chosen by probabilities and a uniform number.
            on_completion: is told of each completion that has ended, while others are still drawn.
        """
        self.sampling, self.decoder, self.choose = sampling, decoder or GroupDecoder(), choose
        self.on_completion = on_completion

    @torch.no_grad()
    def generate(self, policy: LanguageModel, prompts: PromptBatch, group_size: int, seed: int, step: int) -> Rollout:
        """Sample G = `group_size` completions for each of P prompts; the policy's mode is left as it is.

        Returns:
            a rollout of B = P * G completions, T = the longest of them.

        Raises:
            UserError: a prompt and the longest completion exceed the model's positions.
        """
        prompt_ids, prompt_mask, sampler = self._prepared(policy, prompts, group_size, seed, step)

        def drawn(some: PromptBatch, places: slice, members: int, rows: slice) -> Rollout:
            ids, mask, logprobs = sampler.completions(policy.pad_token_id, rows)
            tokens = [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]
            return Rollout(
                prompts=some,
                group_size=members,
                step=step,
                prompt_ids=prompt_ids[places],
                prompt_mask=prompt_mask[places],
                completion_ids=ids,
                completion_mask=mask,
                old_logprobs=logprobs,
                truncated=~sampler.ended[rows],
                texts=policy.tokenizer.batch_decode(tokens, skip_special_tokens=True),
                seed=seed,
            )

        def tell(told: OnCompletion, ended: list[int]) -> None:
            for row in ended:
                place, member = divmod(row, group_size)
                at, rows = slice(place, place + 1), slice(row, row + 1)
                told(drawn(prompts.select([place]), at, 1, rows), member)

        if self.on_completion is not None:
            sampler.on_end = partial(tell, self.on_completion)
        # Inference mode spares what autograd's book-keeping costs even without gradients. Sharded weights do not
        # survive it.
        with torch.inference_mode(mode=not policy.is_sharded):
            self.decoder.run(policy, prompt_ids, prompt_mask, sampler)
        return drawn(prompts, slice(None), group_size, slice(None))

    def begin(self, policy: LanguageModel, prompts: PromptBatch, group_size: int, seed: int, step: int) -> None:
        """Have a decoder that draws ahead begin what `generate` is asked for later, by the policy as it is now."""
        self.decoder.begin(policy, *self._prepared(policy, prompts, group_size, seed, step))

    def _prepared(
        self, policy: LanguageModel, prompts: PromptBatch, group_size: int, seed: int, step: int
    ) -> tuple[Tensor, Tensor, Sampler]:
        length = self.sampling.max_completion_length
        ids, mask = policy.encode_prompts(prompts.contents, length)
        uniforms = sampling_uniforms(seed, step, prompts.indices, group_size, length)
        return ids, mask, Sampler(self.sampling, uniforms, ids, mask, policy.end_token_ids, self.choose)
