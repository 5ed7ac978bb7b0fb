"""Decoding by the continuous batching of `transformers`: a paged cache, whose rooms pass from row to row."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching import ContinuousBatchingManager, RequestState, RequestStatus
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.ops import chunked_statistics
from grpovi_lightning.rollout.decoding import Decoder
from grpovi_lightning.rollout.sampler import Sampler
from grpovi_lightning.structures import PromptBatch, Rollout
from grpovi_lightning.timing import phase

_OLDEST = (5, 23)
_INSTEAD = "take another decoder"


class ContinuousBatchingDecoder(Decoder):
    """A finished completion makes room for a waiting one at once; each prompt is run once but for its last token.

    The cache lives for one call: the weights of the next one are others. Of a prompt its group shares the full pages.
    With `sdpa` attention every row of a pass is computed against the keys of all, so `rows_at_once` bounds that waste.
    The first call is checked against a plain forward pass.
    """

    def __init__(
        self, rows_at_once: int = 64, page_size: int = 32, tokens_at_once: int = 1024, cache_tokens: int | None = None
    ) -> None:
        """Sets sizes; none of them changes a completion.

        Args:
            rows_at_once: completions in a forward pass; the others wait.
            page_size: tokens in a page of the cache; flash attention reads multiples of 256 where they are, and others
                by a copy.
            tokens_at_once: tokens in a forward pass; longer prompts are run in parts.
            cache_tokens: room for prompts and completions; None: for all of them. Where it is short, completions
                under way give way to others and are run again later.

        Raises:
            UserError: a size is too small, or the library too old.
        """
        sizes = {"rows_at_once": (rows_at_once, 1), "page_size": (page_size, 4), "tokens_at_once": (tokens_at_once, 1)}
        for name, (size, least) in sizes.items():
            if size < least:
                raise UserError(f"{name}: got {size}, expected at least {least}")
        if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < _OLDEST:
            raise UserError(
                f"continuous batching: got transformers {transformers.__version__}, expected "
                f"{'.'.join(map(str, _OLDEST))} or newer; upgrade it or {_INSTEAD}"
            )
        self.rows_at_once, self.page_size = rows_at_once, page_size
        self.tokens_at_once, self.cache_tokens = tokens_at_once, cache_tokens
        self._checked = False

    @torch.no_grad()
    def decode(self, policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
        """See `Decoder`.

        Raises:
            UserError: the model, or how it is run, does not go with continuous batching.
        """
        _check_support(policy)
        prompts = [row[kept].tolist() for row, kept in zip(prompt_ids, prompt_mask, strict=True)]
        members = len(sampler.ended) // len(prompts)
        with _evaluating(policy.model), phase(keys.STEP_TIME_DECODE):
            manager = self._manager(policy, prompts, members, sampler)
            _add_requests(manager, prompts, members)
            _run(manager, len(sampler.ended))
            if not self._checked:
                _check_numbers(policy, prompt_ids, prompt_mask, sampler)
                self._checked = True

    def _manager(
        self, policy: LanguageModel, prompts: list[list[int]], members: int, sampler: Sampler
    ) -> ContinuousBatchingManager:
        lengths = [len(prompt) + sampler.length for prompt in prompts]
        blocks = sum(-(-length // self.page_size) for length in lengths) * members
        if self.cache_tokens is not None:
            if self.cache_tokens // self.page_size < -(-max(lengths) // self.page_size):
                raise UserError(
                    f"cache_tokens: got {self.cache_tokens}, expected room for the longest prompt and completion, "
                    f"{max(lengths)} tokens in pages of {self.page_size}; raise it"
                )
            blocks = min(blocks, self.cache_tokens // self.page_size)
        config = ContinuousBatchingConfig(
            page_size=self.page_size,
            num_blocks=blocks,
            max_batch_tokens=self.tokens_at_once,
            max_requests_per_batch=min(self.rows_at_once, self.tokens_at_once, len(sampler.ended)),
            max_blocks_per_request=None if self.page_size % 256 == 0 else 0,
            # Drawing needs the tokens of the pass before, and changes on the CPU what a graph would repeat.
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
            safety_margin=0.0 if self.cache_tokens is None else None,
            seed=0,
        )
        generation = GenerationConfig(max_new_tokens=sampler.length, do_sample=False, eos_token_id=policy.end_token_ids)
        manager = ContinuousBatchingManager(policy.model, generation, config)  # type: ignore[arg-type]
        drawn = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([_Drawn(sampler, prompts, members)]))
        drawn.tensors_required = 1
        manager.logit_processor = drawn
        device = policy.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # it sets the global seed
            try:
                manager.warmup()
            except MemoryError as error:
                raise UserError(
                    f"the cache of continuous batching does not fit: {str(error).lower()}; "
                    f"set cache_tokens below {blocks * self.page_size}"
                ) from error
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the model will run in another stream
        return manager


def _add_requests(manager: ContinuousBatchingManager, prompts: list[list[int]], members: int) -> None:
    """A request for each prompt, which forks before its last token; prompts of one token cannot."""
    for p, prompt in enumerate(prompts):
        forks = len(prompt) > 1
        manager.num_return_sequences = members if forks else 1
        for member in range(1 if forks else members):
            manager.add_request(prompt, request_id=f"{p}__child#{member - 1}" if member else str(p))


def _run(manager: ContinuousBatchingManager, rows: int) -> None:
    """The manager's own loop, but in this thread, where autograd is off, and errors are raised."""
    processor = manager.batch_processor
    assert processor is not None
    while processor.prepare_next_batch():
        processor._generation_step(manager.model)  # type: ignore[arg-type]
        processor.update_batch()
    outputs = [manager.output_router.output_queue.get() for _ in range(manager.output_router.output_queue.qsize())]
    finished = sum(output.status == RequestStatus.FINISHED for output in outputs)
    if finished != rows:
        reasons = {output.error for output in outputs if output.error}
        raise RuntimeError(f"continuous batching finished {finished} of {rows} completions: {reasons or 'no reason'}")


class _Drawn(ContinuousBatchingLogitsProcessor):
    """Leaves the token that the sampler draws as the only possible one."""

    supported_kwargs, ignored_kwargs = {}, ()

    def __init__(self, sampler: Sampler, prompts: list[list[int]], members: int) -> None:
        self._sampler, self._members = sampler, members
        self._lengths = [len(prompt) for prompt in prompts]
        self._places: list[tuple[int, int]] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        """Notes whose logits are going to come; nothing needs to be kept on the device for that."""
        self._places = [self._place(request.state) for request in requests_with_new_token]
        return torch.zeros(len(self._places), dtype=torch.int32)

    def _place(self, state: RequestState) -> tuple[int, int]:
        """Row of a completion, and the tokens that it has; those before it gave way count as its prompt."""
        prompt, _, child = state.request_id.partition("__child#")
        row = int(prompt) * self._members + (int(child) + 1 if child else 0)
        return row, len(state.initial_tokens) + state.generated_len() - self._lengths[int(prompt)]

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        only = torch.full_like(scores, -torch.inf)  # behind these rows stand those that still read their prompt
        for t in sorted({t for _, t in self._places}):
            found = [(i, row) for i, (row, place) in enumerate(self._places) if place == t]
            at, rows = torch.tensor(found, device=scores.device).unbind(dim=1)
            only[at, self._sampler.draw(scores[at], rows, t)] = 0.0
        return only


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, as the manager will have it; modules get their own modes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_support(policy: LanguageModel) -> None:
    model, attention = policy.model, policy.model.config._attn_implementation
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    if policy.is_sharded:
        raise UserError(f"continuous batching: got sharded weights, expected whole ones; {_INSTEAD}")
    if torch.is_autocast_enabled(policy.device.type):
        raise UserError(
            "continuous batching: got mixed precision, expected trainer.precision 32-true, with the policy's dtype "
            f"bfloat16 where it shall be fast; {_INSTEAD}"
        )
    if attention != "sdpa" and "flash" not in str(attention):
        got = f"{name} with {attention} attention"
        raise UserError(f"continuous batching: got {got}, expected sdpa or flash attention; {_INSTEAD}")
    # Keys that are cached compressed have another size than values; the pages know one size.
    one_size = getattr(config, "kv_lora_rank", None) is None
    through_interface = getattr(model, "_supports_attention_backend", False)
    if not (policy.capabilities.shares_prefix and through_interface and one_size):
        raise UserError(
            f"continuous batching: got {name}, expected a model that keeps the keys and values of all tokens, of one "
            f"size, and whose attention goes through the interface of transformers; {_INSTEAD}"
        )


def _check_numbers(policy: LanguageModel, prompt_ids: Tensor, prompt_mask: Tensor, sampler: Sampler) -> None:
    """Compares a completion of each of the first prompts with a forward pass that knows nothing of pages."""
    ids, mask, logprobs = sampler.completions(policy.pad_token_id)
    count = min(len(prompt_ids), 4)
    rows = torch.arange(count, device=ids.device) * (len(ids) // len(prompt_ids))
    rollout = Rollout(
        prompts=PromptBatch([""] * count, torch.arange(count), {}),
        group_size=1,
        step=0,
        prompt_ids=prompt_ids[:count],
        prompt_mask=prompt_mask[:count],
        completion_ids=ids[rows],
        completion_mask=mask[rows],
        old_logprobs=logprobs[rows],
        truncated=~sampler.ended[rows],
        texts=[""] * count,
    )
    head, kept = policy.capabilities.parts.head, rollout.completion_mask
    expected = chunked_statistics(policy.plain_states(rollout), head, rollout.completion_ids, kept, sampler.temperature)
    error = float((rollout.old_logprobs - expected.logprobs)[kept].abs().mean())
    if not error < (1e-3 if policy.model.dtype in (torch.float32, torch.float64) else 0.1):
        raise UserError(
            f"continuous batching of {type(policy.model).__name__} gives log-probabilities that differ by {error:.1e} "
            f"from those of a plain forward pass; {_INSTEAD}"
        )
