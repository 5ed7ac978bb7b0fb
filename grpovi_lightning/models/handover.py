"""The weights of a policy as a checkpoint names them, for an engine that samples from a copy of its own."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from grpovi_lightning.models.adapter_files import CONFIG, PLAIN_STARTS, WEIGHTS, save_adapter
from grpovi_lightning.models.adapters import INITIAL, TRAINED, adapted_kinds, has_adapters, require_peft
from grpovi_lightning.models.merging import merged

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ABOUT_THE_FILE = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
# Settings of peft under which an adapter still adds B A to the products of linear layers, and nothing else.
_PLAIN = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights", "inference_mode"}
_PLAIN |= {"exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"}


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as peft writes it.

    Attributes:
        config: the content of `adapter_config.json`, on one line.
        tensors: name -> weights, those of `adapter_model.safetensors`.
    """

    config: str
    tensors: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """What tells it from others: equal for equal settings and bits."""
        return digest(self.tensors, self.config)


@dataclass(frozen=True)
class HandedOver:
    """All that another engine needs to compute the policy.

    Attributes:
        tensors: name -> weights, under the names of a checkpoint; those of the model itself where it has them.
        adapter: to be added to them, or None.
    """

    tensors: Mapping[str, Tensor]
    adapter: Adapter | None = None

    @staticmethod
    def of(model: PreTrainedModel, adapters: bool) -> "HandedOver":
        """Return what a model computes; where `adapters` is true and it is plain LoRA, as weights and an adapter."""
        if adapters and is_plain_lora(model):
            return HandedOver(_base(model), _adapter(model))
        return HandedOver(_named(merged(model) if has_adapters(model) else model))

    def kept(self) -> "HandedOver":
        """Return the same for later, when the policy has changed: copies in main memory of what is trained.

        With an adapter beside them the weights are frozen, and the adapter is a copy already.
        """
        if self.adapter is not None:
            return self
        return replace(self, tensors={name: tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()})


def lora_rank(model: PreTrainedModel) -> int:
    """Return the largest rank of a model's adapters, 0 where it has none or they are more than plain LoRA."""
    if not is_plain_lora(model):
        return 0
    config: Any = model.peft_config[TRAINED]
    return max([config.r, *config.rank_pattern.values()])


def is_plain_lora(model: PreTrainedModel) -> bool:
    """Return whether a model is a checkpoint's weights with a LoRA adapter on linear layers, and no more than that."""
    if not has_adapters(model):
        return False
    config: Any = model.peft_config[TRAINED]
    default, free = require_peft().LoraConfig(), _ABOUT_THE_FILE | _PLAIN
    others = [option.name for option in dataclasses.fields(config) if option.name not in free]
    as_usual = all(getattr(config, name) == getattr(default, name) for name in others)
    adapted = [module for module in model.modules() if isinstance(module, adapted_kinds())]
    layers: list[Any] = [getattr(module, "base_layer", None) for module in adapted]
    inner = all(isinstance(layer, nn.Linear) and layer.weight.is_floating_point() for layer in layers)
    output = any(module is model.get_output_embeddings() for module in adapted)
    return as_usual and inner and not output and config.init_lora_weights in PLAIN_STARTS


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return what tells tensors from others, without moving them to the CPU.

    It is made of the names and the sums over rows and over columns of the bits, as whole numbers: a change of any
    weight changes it, whoever makes that change and however small it is, unless several cancel in both sums.
    """
    found = hashlib.sha256(text.encode())
    sums = []
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        rows = _as_numbers(tensor)
        sums += [rows.sum(dim=dim, dtype=torch.int64) for dim in (0, 1)]
    if sums:
        found.update(torch.cat(sums).cpu().numpy().tobytes())
    return found.hexdigest()


def _as_numbers(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor as a matrix of whole numbers, one for 8 bytes where its rows can be cut so."""
    rows = tensor.detach().contiguous()
    rows = rows.reshape(-1, rows.shape[-1] if rows.ndim > 1 else max(1, rows.numel()))
    whole = rows.shape[1] * rows.element_size() % 8 == 0  # sums of 8 bytes are thirty times as fast as of 4
    if whole and rows.storage_offset() * rows.element_size() % 8:
        rows = rows.clone()
    return rows.view(torch.int64 if whole else _BITS[rows.element_size()])


def _named(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return weights under the names that `save_pretrained` gives them; tied ones once."""
    return _as_saved(model, {name: tensor.detach() for name, tensor in model.state_dict().items()})


def _base(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights under the adapters, likewise."""
    adapters = {TRAINED, INITIAL}
    state = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in model.state_dict().items()
        if adapters.isdisjoint(name.split("."))
    }
    return _as_saved(model, state)


def _as_saved(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: dict[tuple[int, torch.Size], str] = {}
    once = {}
    for name, tensor in state.items():
        if seen.setdefault((tensor.data_ptr(), tensor.shape), name) == name:
            once[name] = tensor
    return revert_weight_conversion(model, once)


def _adapter(model: PreTrainedModel) -> Adapter:
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        config = json.dumps(json.loads(Path(folder, CONFIG).read_text(encoding="utf-8")), sort_keys=True)
        return Adapter(config, load_file(Path(folder, WEIGHTS)))
