"""Working adapters into the weights, so that the model can be loaded without peft."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpovi_lightning.models.adapters import TRAINED, adapted_kinds, require_peft


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with the adapters worked into the weights, which can be loaded without peft.

    Quantised weights become floating-point numbers: rounded once more, they would lose most of the adapter.
    """
    whole = copy.deepcopy(model)
    embeddings = whole.get_input_embeddings(), whole.get_output_embeddings()
    if embeddings[1] is not None and any(isinstance(module, adapted_kinds()) for module in embeddings):
        _untie(whole)
    replaced: list[str] = []
    # A list first, because the loop replaces modules.
    for name, module in list(whole.named_modules()):
        within = any(name.startswith(f"{outer}.") for outer in replaced)
        if not within and (isinstance(module, adapted_kinds()) or _is_quantized(module)):
            parent, _, child = name.rpartition(".")
            setattr(whole.get_submodule(parent), child, _plain_layer(module))
            replaced.append(name)
    # peft can take adapters out of its own wrapper only, not out of a `transformers` model; while this flag is set,
    # `save_pretrained` would write adapters and nothing else.
    whole._hf_peft_config_loaded = False
    quantizer: Any = getattr(whole, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(whole)
    return whole.requires_grad_(True)


def _plain_layer(layer: Any) -> nn.Module:
    if hasattr(layer, "unload_and_optionally_merge_module"):  # modules that are trained whole, and single tokens
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    is_adapted = hasattr(layer, "base_layer")
    base = layer.get_base_layer() if is_adapted else layer
    if _is_quantized(base):
        return _dequantized(base, layer.get_delta_weight(TRAINED) if is_adapted else None)
    layer.merge()
    return base


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()


@torch.no_grad()
def _dequantized(layer: Any, delta: Tensor | None) -> nn.Linear:
    weights: Tensor = require_peft().utils.integrations.dequantize_module_weight(layer)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weights if delta is None else weights.to(delta.dtype) + delta)
    plain.bias = layer.bias
    return plain


def _untie(model: PreTrainedModel) -> None:
    """Give the output embedding weights of its own: merged into shared ones, an adapter of one would change both."""
    output: Any = model.get_output_embeddings()
    output = getattr(output, "original_module", getattr(output, "base_layer", output))
    output.weight = nn.Parameter(output.weight.detach().clone())
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # by which `save_pretrained` leaves weights out
