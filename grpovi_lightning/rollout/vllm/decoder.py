"""Rollouts from vLLM."""

from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.losses import ImportanceSampling, TruncatedImportanceSampling
from grpovi_lightning.models import CausalLMSource, LanguageModel
from grpovi_lightning.rollout.decoding import Decoder
from grpovi_lightning.rollout.sampler import Sampler
from grpovi_lightning.rollout.sampling import SamplingConfig
from grpovi_lightning.rollout.vllm.engines import ColocatedVLLM, Engine
from grpovi_lightning.rollout.vllm.library import check_sampling
from grpovi_lightning.rollout.vllm.requests import Request
from grpovi_lightning.timing import phase


class VLLMDecoder(Decoder):
    """A decoder that has vLLM draw whole completions, of the same distribution as the other decoders'.

    Completions are a function of weights, prompt, seed and step, as everywhere, but for what vLLM's rounding in batches
    of other sizes changes. vLLM computes another rounding of the policy, so updates are corrected by truncated
    importance sampling; `sampling/*` says how far the two are apart.
    """

    def __init__(self, engine: Engine | None = None, importance_sampling_cap: float | None = 2.0) -> None:
        """Say where vLLM runs.

        Args:
            engine: default `ColocatedVLLM`; or a `VLLMServer`, or `OneStepAhead` with one.
            importance_sampling_cap: that of the `TruncatedImportanceSampling` of updates whose settings name no
                `importance_sampling`; None: they are not corrected.
        """
        self.engine = engine or ColocatedVLLM()
        self.draws_ahead = self.engine.draws_ahead
        cap = importance_sampling_cap
        self._correction = None if cap is None else TruncatedImportanceSampling(cap)

    @property
    def correction(self) -> ImportanceSampling | None:
        return self._correction

    def check(self, source: CausalLMSource, sampling: SamplingConfig) -> None:
        check_sampling(sampling)
        self.engine.check(source)

    def check_processes(self, number: int) -> None:
        self.engine.check_processes(number)

    def run(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        self.decode(policy, prompt_ids, prompt_mask, sampler)  # no weights of the policy's own are computed with

    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        with phase(keys.STEP_TIME_DECODE):
            sampler.keep(self.engine.complete(policy, _request(prompt_ids, prompt_mask, sampler)))

    def begin(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        with phase(keys.STEP_TIME_DECODE):
            self.engine.begin(policy, _request(prompt_ids, prompt_mask, sampler))

    def drawn_ahead(self) -> str | None:
        return self.engine.drawn_ahead()

    def take_drawn_ahead(self, state: str | None) -> None:
        self.engine.take_drawn_ahead(state)


def _request(prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> Request:
    sampling = sampler.sampling
    return Request(
        prompts=[row[kept].tolist() for row, kept in zip(prompt_ids.cpu(), prompt_mask.cpu(), strict=True)],
        seeds=sampler.seeds(),
        max_tokens=sampler.length,
        end_token_ids=list(sampler.end_token_ids),
        greedy=sampler.is_greedy,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
    )
