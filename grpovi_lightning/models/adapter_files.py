"""Adapters on disk, as plain peft writes and reads them: `adapter_config.json` and `adapter_model.safetensors`."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.adapters import (
    INITIAL,
    SAME_POLICY,
    TRAINED,
    keep_initial,
    require_peft,
    trains_base_weights,
)
from grpovi_lightning.models.files import check_files, loading
from grpovi_lightning.models.hub import adapter_folder, check_hub, looks_local

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "mica", None)
"""What an adapter may have started as. Others changed the weights under it as well, so it does not fit the base."""

_PREFIX = "base_model.model."
_OTHER_BASE = "use an adapter that was trained on this model"

_log = logging.getLogger(__name__)


def check_adapter(path: str) -> None:
    """Raise `UserError` for a folder or hub name that gives no LoRA adapter that can be read."""
    require_peft()
    if not looks_local(path):
        check_hub(path, "adapter", CONFIG)
    folder = _folder(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        state = f"no {missing[0]} in it" if folder.is_dir() else "no such folder"
        raise UserError(f"adapter {path}: {state}; expected a folder that peft wrote ({CONFIG}, {WEIGHTS})")
    with loading(f"adapter {folder / CONFIG}"):
        settings = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    kind, start = settings.get("peft_type"), settings.get("init_lora_weights", True)
    if kind != "LORA":
        raise UserError(f"adapter {path}: got peft_type {kind}, expected LORA")
    if start not in PLAIN_STARTS:
        raise UserError(
            f"adapter {path}: it was started by {start}, which changes the weights under the adapter as well; convert "
            "it to plain LoRA (`path_initial_model_for_weight_conversion` of peft's `save_pretrained`)"
        )
    check_files(folder, "adapter")


def load_adapter(model: PreTrainedModel, path: str) -> None:
    """Put an adapter from a folder or the hub on a model, to be trained; its dropout is off.

    As it is now, it is kept under the name `INITIAL`, too.

    Raises:
        UserError: it does not fit the model.
    """
    peft = require_peft()
    with loading(f"adapter {path}"):
        folder = _folder(path)
        config: Any = peft.PeftConfig.from_pretrained(folder)
        state = {name.removeprefix(_PREFIX): weights for name, weights in load_file(folder / WEIGHTS).items()}
        if config.lora_dropout:
            _log.info(f"adapter {path}: its dropout of {config.lora_dropout} is off: {SAME_POLICY}")
        config.lora_dropout, config.inference_mode = 0.0, False
        model.add_adapter(config, TRAINED)
    _check_fit(path, model, state)
    peft.set_peft_model_state_dict(model, state, TRAINED)
    if not trains_base_weights(model):
        keep_initial(model)


def _folder(path: str) -> Path:
    return Path(path) if looks_local(path) else adapter_folder(path)


def _check_fit(path: str, model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Raise `UserError` unless the weights are all that the adapter of a model has, and no others."""
    # peft also writes embeddings that lie under an adapter: they have to be the model's.
    expected, base = _state(model, TRAINED), model.state_dict()
    for name in state.keys() - expected.keys():
        if name not in base or not torch.equal(base[name], state[name].to(base[name].dtype)):
            raise UserError(f"adapter {path}: {name} is not a weight of {model.name_or_path}; {_OTHER_BASE}")
    for name, weights in expected.items():
        found = tuple(state[name].shape) if name in state else None
        if found != weights.shape:
            raise UserError(
                f"adapter {path}: got {'no' if found is None else f'shape {found} of'} {name}, expected shape "
                f"{tuple(weights.shape)} for {model.name_or_path}; {_OTHER_BASE}"
            )


def save_adapter(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the trained adapter of a model, so that `peft.PeftModel.from_pretrained` puts it on the same base."""
    state, config = _state(model, TRAINED), copy.deepcopy(_config(model))
    if config.init_lora_weights not in PLAIN_STARTS:
        state = _differences(state, _state(model, INITIAL))
        _double_rank(config)
    config.inference_mode = True
    config.base_model_name_or_path = _base_of(model)
    Path(folder).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    whole = {f"{_PREFIX}{name}": weights.contiguous() for name, weights in state.items()}
    save_file(whole, Path(folder, WEIGHTS), metadata={"format": "pt"})


def _state(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    # An embedding under an adapter is the base's, and is not written. Biases are trained in their place, and peft 0.20
    # leaves out those of adapted layers.
    state = require_peft().get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    in_place = {n: p for n, p in model.named_parameters() if p.requires_grad and TRAINED not in n.split(".")}
    return in_place | state


def _config(model: PreTrainedModel) -> Any:
    return model.peft_config[TRAINED]


def _differences(now: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return factors of twice the rank: B A - B_0 A_0 = [B, -B_0] [A; A_0].

    Adapters that started as a part of the weights (PiSSA, OLoRA) took that part away from the weights under them.
    """
    signs = {"lora_A": (0, 1.0), "lora_B": (1, -1.0)}
    found = dict(now)
    for name, weights in now.items():
        for factor, (axis, sign) in signs.items():
            if f".{factor}." in name:
                found[name] = torch.cat([weights, sign * before[name]], dim=axis)
    return found


def _double_rank(config: Any) -> None:
    scale = 2**0.5 if config.use_rslora else 2
    config.init_lora_weights = True
    config.r, config.lora_alpha = 2 * config.r, scale * config.lora_alpha
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: scale * alpha for name, alpha in config.alpha_pattern.items()}


def _base_of(model: PreTrainedModel) -> str:
    """Return where the model under an adapter comes from: a folder's full path, or a hub name."""
    path = str(model.name_or_path)
    return str(Path(path).resolve()) if Path(path).exists() else path
