"""The library vLLM: whether it is there, how it is imported, and what it cannot do."""

import importlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import CausalLMSource, NewCausalLM, PretrainedCausalLM
from grpovi_lightning.models.sources import load_config
from grpovi_lightning.rollout.sampling import SamplingConfig

_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # it would report to its makers
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the process belongs to the training
}

OPTIONS = ("block_size", "enable_chunked_prefill", "enforce_eager", "max_model_len", "max_num_batched_tokens")
OPTIONS += ("max_num_seqs",)
"""Arguments of `vllm.LLM` that may be given. Others would change what is computed, or have code of a file run."""

_NO_MATTER = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
_NO_MATTER |= {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "id2label", "label2id"}
_NO_MATTER |= {"attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"}
_NO_MATTER |= {"quantization_config", "max_length"}
"""Settings of a configuration that change nothing of what a model computes from its weights."""


def require_vllm() -> Any:
    """Return the module vllm; raise `UserError` where it is not installed."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:  # a folder of that name is no library
        raise UserError(
            "VLLMDecoder: vllm is not installed here; see docs/vllm.md for how, or name a server that runs in an "
            "environment of its own (engine: grpovi_lightning.rollout.vllm.VLLMServer)"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that weights are handed over within the process
    return importlib.import_module("vllm")


def part(name: str) -> Any:
    """Return a module of vLLM."""
    require_vllm()
    return importlib.import_module(f"vllm.{name}")


@contextmanager
def left_alone() -> Iterator[None]:
    """Run vLLM within a training process: random numbers, threads and autocast of the training stay as they are."""
    threads, device = torch.set_num_threads, "cuda" if torch.cuda.is_available() else "cpu"
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(mode=False), torch.no_grad():
        try:
            with torch.autocast(device, enabled=False):
                yield
        finally:
            torch.set_num_threads = threads  # on a CPU, vLLM puts a function there that does nothing


def check_sampling(sampling: SamplingConfig) -> None:
    """Raise `UserError` for settings that mean something else to vLLM."""
    if sampling.min_p > 0.0 and sampling.top_p < 1.0:
        raise UserError(
            f"sampling: got min_p {sampling.min_p} with top_p {sampling.top_p}, which vLLM applies in the other order, "
            "to another distribution; leave one of them out, or use GroupDecoder"
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `UserError` for an argument of `vllm.LLM` that is not for the user to give."""
    for name in options:
        if name not in OPTIONS:
            raise UserError(f"options: got {name!r}, expected some of {', '.join(OPTIONS)}")


def check_model(source: CausalLMSource) -> None:
    """Raise `UserError` for a model that vLLM here does not know."""
    vllm, config = require_vllm(), config_of(source)
    if config is None:
        return
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)
    if architecture not in vllm.ModelRegistry.get_supported_archs():
        raise UserError(
            f"VLLMDecoder: got a {architecture}, which vLLM {vllm.__version__} does not know; use GroupDecoder"
        )
    if part("platforms").current_platform.is_cpu():
        _check_heads(config)


def _check_heads(config: Any) -> None:
    text = config.get_text_config(decoder=True)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    sizes = part("v1.attention.backends.cpu_attn").CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes:
        raise UserError(
            f"VLLMDecoder: got attention heads of size {size}, expected one of {', '.join(map(str, sizes))}, which "
            "vLLM has on a CPU; use GroupDecoder"
        )


def config_of(source: CausalLMSource) -> Any:
    """Return the configuration of the model that a source will load, or None where it cannot be known."""
    if isinstance(source, NewCausalLM):
        return AutoConfig.for_model(**source.config)
    if isinstance(source, PretrainedCausalLM):
        where = {"revision": source.revision, "gguf_file": source.gguf_file}
        return load_config(source.path, **{name: value for name, value in where.items() if value is not None})
    return None


def described(config: Any) -> dict[str, Any]:
    """Return what tells a model from others of another kind, size or computation, as JSON has it."""
    return json.loads(json.dumps({k: v for k, v in config.to_dict().items() if k not in _NO_MATTER}, default=str))


def known(source: CausalLMSource) -> dict[str, Any]:
    """Return the part of it that is known of a source before it is loaded."""
    config = config_of(source)
    found = {} if config is None else described(config)
    # What fresh weights are made of depends on the tokenizer, too.
    return {k: found[k] for k in found.keys() & source.config.keys()} if isinstance(source, NewCausalLM) else found
