"""A model in vLLM, in this process."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.adapter_files import CONFIG, WEIGHTS
from grpovi_lightning.models.handover import HandedOver
from grpovi_lightning.rollout.vllm.library import left_alone, part, require_vllm
from grpovi_lightning.rollout.vllm.requests import Completion, Request, Versions

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


class LoadedModel:
    """A model in vLLM, at first with weights of no meaning.

    Attributes:
        versions: which weights it has.
        lora_rank: the largest rank of an adapter that it can take, 0 for none.
        max_model_len: tokens that a prompt with its completion may have.
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: str,
        kv_cache_gb: float,
        lora_rank: int,
        options: Mapping[str, Any],
        sleeps: bool = False,
    ) -> None:
        """Make room for a model.

        Args:
            folder: has its `config.json`; weights and tokenizer are not read.
            dtype: of the weights, such as `float32`.
            kv_cache_gb: memory for keys and values, 10^9 bytes.
            lora_rank: the largest rank of an adapter, 0 for none.
            options: further arguments of `vllm.LLM`.
            sleeps: whether it leaves a GPU to others between the calls of `complete`.

        Raises:
            UserError: vLLM refuses the model or a setting.
        """
        vllm = require_vllm()
        self.versions, self.lora_rank = Versions(), _room(lora_rank)
        self._sleeps = sleeps and part("platforms").current_platform.is_cuda()
        self._asleep, self._handed_over = False, 0
        settings: dict[str, Any] = {
            "model": str(folder),
            "dtype": dtype,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # not the model's own: every setting comes with the request
            "logprobs_mode": "raw_logprobs",
            "max_model_len": -1,  # as many as fit
            "kv_cache_memory_bytes": int(kv_cache_gb * 1e9),
            "enable_prefix_caching": True,
            "enable_sleep_mode": self._sleeps,
            "disable_log_stats": True,
            "trust_remote_code": False,
        }
        if self.lora_rank:
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": self.lora_rank}
        with left_alone():
            try:
                self._llm = vllm.LLM(**settings | dict(options))
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise UserError(f"vLLM cannot load {folder}: {' '.join(lines[:4]) or type(error).__name__}") from error
            self._scales = self._llm.apply_model(_scales)[0]
        self.max_model_len: int = self._llm.llm_engine.model_config.max_model_len

    def take(self, versions: Versions, policy: HandedOver) -> None:
        """Take the weights and the adapter that it does not have yet."""
        if versions.base != self.versions.base:
            self.take_base(versions.base, policy.tensors.items())
        if versions.adapter != self.versions.adapter:
            adapter = policy.adapter
            self.take_adapter(versions.adapter, adapter.config if adapter else "", adapter.tensors if adapter else {})

    def take_base(self, version: str | None, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take all weights.

        Raises:
            UserError: they are not those of the model.
        """
        self._wake()
        self.versions = Versions()  # of none, should this fail in the middle
        with left_alone():
            try:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})
                self._llm.apply_model(_pack_output_layers)
            except (ValueError, KeyError, RuntimeError, AssertionError) as error:
                raise UserError(
                    f"vLLM cannot take the policy's weights into its model: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:300]}; use GroupDecoder"
                ) from error
            self._llm.reset_prefix_cache()
        self.versions = Versions(version)

    def take_adapter(self, version: str | None, config: str, tensors: Mapping[str, Tensor]) -> None:
        """Take an adapter in place of the one that it has; a version of None takes that one away.

        Raises:
            UserError: it is of no kind that vLLM takes.
        """
        self._wake()
        self.versions = Versions(self.versions.base)
        with left_alone():
            if self._handed_over:
                self._llm.llm_engine.remove_lora(self._handed_over)
            self._llm.reset_prefix_cache()
            if version is None:
                return
            self._handed_over += 1
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, CONFIG).write_text(config, encoding="utf-8")
                save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, Path(folder, WEIGHTS))
                try:
                    self._llm.llm_engine.add_lora(self._adapter(folder))
                except (ValueError, RuntimeError) as error:
                    raise UserError(f"vLLM cannot take the adapter {json.loads(config)}: {error}") from error
        self.versions = Versions(self.versions.base, version)

    def complete(self, request: Request) -> list[Completion]:
        """Draw B completions.

        Raises:
            UserError: a prompt with its completion is longer than there is room for.
        """
        if request.longest() > self.max_model_len:
            raise UserError(
                f"VLLMDecoder: got a prompt and completion of {request.longest()} tokens, but vLLM has room for "
                f"{self.max_model_len}; raise kv_cache_gb (or max_model_len of its options)"
            )
        self._wake()
        members = len(request.seeds) // len(request.prompts)
        prompts = [{"prompt_token_ids": prompt} for prompt in request.prompts for _ in range(members)]
        with left_alone():
            for module, scale in self._scales:
                module.scale = scale / request.temperature
            adapter = self._adapter() if self.versions.adapter else None
            found = self._llm.generate(prompts, self._parameters(request), use_tqdm=False, lora_request=adapter)
            if self._sleeps:
                self._llm.sleep(level=1)
                self._asleep = True
        return [_completion(output.outputs[0]) for output in found]

    def _parameters(self, request: Request) -> list[Any]:
        # The temperature stands in the model's last layer, so that the log-probabilities that vLLM calls raw have it.
        sampled = {"top_k": request.top_k, "top_p": request.top_p, "min_p": request.min_p}
        return [
            require_vllm().SamplingParams(
                temperature=0.0 if request.greedy else 1.0,
                **({} if request.greedy else sampled),
                seed=seed,
                repetition_penalty=request.repetition_penalty,
                max_tokens=request.max_tokens,
                stop_token_ids=request.end_token_ids,
                ignore_eos=True,  # `stop_token_ids` are all
                logprobs=0,  # of the drawn token alone
                detokenize=False,
            )
            for seed in request.seeds
        ]

    def _adapter(self, folder: str = "in memory") -> Any:
        return part("lora.request").LoRARequest(f"adapter {self._handed_over}", self._handed_over, folder)

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False


def _room(rank: int) -> int:
    for room in (0, *_RANKS):
        if rank <= room:
            return room
    raise UserError(f"lora.r: got {rank}, expected at most {_RANKS[-1]}, the largest that vLLM takes")


def _scales(model: nn.Module) -> list[tuple[Any, float]]:
    """Return what scales the logits of a model in vLLM, and by how much."""
    kind = part("model_executor.layers.logits_processor").LogitsProcessor
    layers: list[Any] = [module for module in model.modules() if isinstance(module, kind)]
    if not layers:
        raise UserError(f"vLLM's {type(model).__name__} has no scale of logits, by which the temperature is set")
    return [(layer, layer.scale) for layer in layers]


def _pack_output_layers(model: nn.Module) -> None:
    """Have output layers that are tied to the input embeddings see the new weights."""
    # On a CPU a layer computes from a packed copy of its weights, and reloading packs that of the embeddings alone.
    kind = part("model_executor.layers.vocab_parallel_embedding").ParallelLMHead
    for module in model.modules():
        if isinstance(module, kind):
            layer: Any = module
            layer.quant_method.process_weights_after_loading(layer)


def _completion(output: Any) -> Completion:
    tokens = list(output.token_ids)
    return tokens, [place[token].logprob for place, token in zip(output.logprobs, tokens, strict=True)]
