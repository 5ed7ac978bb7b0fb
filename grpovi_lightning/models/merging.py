"""Working adapters into the weights, so that the model can be loaded without peft."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from grpovi_lightning.models.adapters import adapted_kinds


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with the adapters worked into the weights, which can be loaded without peft."""
    whole = copy.deepcopy(model)
    embeddings = whole.get_input_embeddings(), whole.get_output_embeddings()
    if any(isinstance(module, adapted_kinds()) for module in embeddings):
        _untie(whole)
    replaced: list[str] = []
    # A list first, because the loop replaces modules.
    for name, module in list(whole.named_modules()):
        within = any(name.startswith(f"{outer}.") for outer in replaced)
        if isinstance(module, adapted_kinds()) and not within:
            parent, _, child = name.rpartition(".")
            setattr(whole.get_submodule(parent), child, _merged_layer(module))
            replaced.append(name)
    # peft can take adapters out of its own wrapper only, not out of a `transformers` model; while this flag is set,
    # `save_pretrained` would write adapters and nothing else.
    whole._hf_peft_config_loaded = False
    return whole.requires_grad_(True)


def _merged_layer(layer: Any) -> nn.Module:
    if hasattr(layer, "unload_and_optionally_merge_module"):  # modules that are trained whole, and single tokens
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    layer.merge()
    return layer.get_base_layer()


def _untie(model: PreTrainedModel) -> None:
    """Give the output embedding weights of its own: merged into shared ones, an adapter of one would change both."""
    output: Any = model.get_output_embeddings()
    output = getattr(output, "original_module", getattr(output, "base_layer", output))
    output.weight = nn.Parameter(output.weight.detach().clone())
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # by which `save_pretrained` leaves weights out
