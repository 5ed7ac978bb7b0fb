"""Low-rank adapters (LoRA, arXiv 2106.09685), with which a policy trains only few weights."""

import copy
import dataclasses
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from grpovi_lightning.errors import UserError, at_least_one
from grpovi_lightning.run_record.checking import close_matches

TRAINED = "default"
"""The adapter that is trained, under the name that peft gives it."""

INITIAL = "initial_policy"
"""A frozen copy of an adapter that does not start at zero: what the initial policy has."""

_NEEDS_DATA = "it needs a pass over data before the training, which is not made here"
SAME_POLICY = "sampling and training must see the same policy"
_OF_THE_BASE = "the policy would not start as the checkpoint"
_REFUSED = {
    "lora_dropout": SAME_POLICY,
    "monteclora_config": f"it draws random weights, but {SAME_POLICY}",
    "kasa_config": f"it cuts the weights under the adapter, so {_OF_THE_BASE}",
    "loftq_config": f"it rounds the weights under the adapter, so {_OF_THE_BASE}",
    "corda_config": _NEEDS_DATA,
    "eva_config": _NEEDS_DATA,
    "lora_ga_config": _NEEDS_DATA,
    "arrow_config": "it chooses among several adapters, and a policy has one",
    "alora_invocation_tokens": "it needs peft's own wrapper around the model",
    "layer_replication": "the copies of a layer share weights, so that adapters cannot be merged into them",
    "use_qalora": "it needs a base that was quantised by GPTQ",
    "qalora_group_size": "it needs a base that was quantised by GPTQ",
    "megatron_config": "models of Megatron are not trained here",
    "megatron_core": "models of Megatron are not trained here",
}
_REFUSED_STARTS = {name: _REFUSED[f"{name}_config"] for name in ("corda", "eva", "lora_ga", "loftq")}
_NOT_FOR_USERS = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
_NOT_FOR_USERS |= {"inference_mode"}
# What peft raises for settings that do not fit each other or a model.
_PEFT_RAISES = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ImportError, re.error)
_OF_LAYERS = ("modules_to_save", "rank_pattern", "alpha_pattern")
_ZERO_AT_FIRST = (True, "gaussian", "mica")


@dataclass(frozen=True)
class LoRA:
    """Settings of the adapters, under peft's names.

    There is no dropout, because sampling and training must see the same policy.

    Attributes:
        r: rank of the update of a weight matrix.
        lora_alpha: the update is scaled by lora_alpha / r.
        target_modules: names of the adapted linear layers; `all-linear` is all but the output embedding.
        use_rslora: whether the scale is lora_alpha / sqrt(r) instead (arXiv 2312.03732).
        options: further settings of `peft.LoraConfig`, such as `use_dora`, `modules_to_save`, `exclude_modules`,
            `layers_to_transform`, `rank_pattern`, `init_lora_weights` or `bias`.
    """

    r: int = 16
    lora_alpha: float = 32.0
    target_modules: list[str] | str = "all-linear"
    use_rslora: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least_one("lora.", r=self.r)
        if not 0.0 < self.lora_alpha < float("inf"):
            raise UserError(f"lora.lora_alpha: got {self.lora_alpha}, expected a number above 0")

    def check(self) -> None:
        """Raise `UserError` where peft is not installed, or an option is not one of its own or cannot work here."""
        known = {option.name for option in dataclasses.fields(require_peft().LoraConfig)} - _NOT_FOR_USERS
        for name in self.options:
            _check_option(name, known - _REFUSED.keys() - _own_fields())
        start = self.options.get("init_lora_weights", True)
        if start in _REFUSED_STARTS:
            raise UserError(f"lora.options.init_lora_weights: {start!r} cannot be used: {_REFUSED_STARTS[start]}")
        self._config()

    def add_to(self, model: PreTrainedModel, task: str = "CAUSAL_LM") -> None:
        """Add fresh adapters and freeze all other weights.

        They change nothing yet, or all of it is kept under the name `INITIAL`, too.

        Args:
            model: gets them.
            task: peft's name of what the model is for; `all-linear` leaves out the output layer of that.

        Raises:
            UserError: peft cannot apply the settings to this model.
        """
        config = self._config(task)
        with self._told_by_peft():
            model.add_adapter(config, TRAINED)
        self._check_names(model)
        if config.init_lora_weights not in _ZERO_AT_FIRST:
            keep_initial(model)

    def _config(self, task: str = "CAUSAL_LM") -> Any:
        settings = {name: getattr(self, name) for name in _own_fields()} | self.options
        with self._told_by_peft():
            return require_peft().LoraConfig(task_type=task, lora_dropout=0.0, **settings)

    @contextmanager
    def _told_by_peft(self) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # of names that fit nothing
                yield
        except (*_PEFT_RAISES, RuntimeWarning) as error:
            options = f" and options {self.options}" if self.options else ""
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"lora: got target_modules {self.target_modules}{options}; peft: {reason}") from error

    def _check_names(self, model: PreTrainedModel) -> None:
        # peft passes over names that fit nothing where others do.
        layers = [name for name, module in model.named_modules() if isinstance(module, adapted_kinds())]
        targets = [] if isinstance(self.target_modules, str) else map(re.escape, self.target_modules)
        named = {"target_modules": targets} | {f"options.{name}": self.options.get(name) or [] for name in _OF_LAYERS}
        for setting, patterns in named.items():
            for pattern in patterns:
                if not any(re.match(rf"(.*\.)?({pattern})$", layer) for layer in layers):
                    raise UserError(f"lora.{setting}: got {pattern!r}, but no layer of that name was adapted")


def _own_fields() -> set[str]:
    return {own.name for own in dataclasses.fields(LoRA)} - {"options"}


def _check_option(name: str, known: set[str]) -> None:
    if name in _REFUSED:
        raise UserError(f"lora.options.{name}: cannot be used: {_REFUSED[name]}; leave it out")
    if name in _own_fields():
        raise UserError(f"lora.options.{name}: is a setting of its own; set lora.{name}")
    if name not in known:
        hint = close_matches(name, sorted(known)) or f"; expected one of {', '.join(sorted(known))}"
        raise UserError(f"lora.options.{name}: no such setting of peft.LoraConfig{hint}")


def keep_initial(model: PreTrainedModel) -> None:
    """Add a frozen copy of the trained adapter, as it is now, under the name `INITIAL`."""
    peft: Any = require_peft()
    config: Any = copy.deepcopy(model.peft_config[TRAINED])
    config.init_lora_weights = True  # other ways would work on the weights under the adapter once more
    peft.inject_adapter_in_model(config, model, INITIAL)
    state = model.state_dict()
    with torch.no_grad():
        for name in [name for name in state if INITIAL in name.split(".")]:
            twin = ".".join(TRAINED if part == INITIAL else part for part in name.split("."))
            state[name].copy_(state[twin])
    peft.functional.set_adapter(model, TRAINED)


@contextmanager
def initial_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Have a model with adapters compute the initial policy."""
    adapters: Any = model.peft_config
    if INITIAL in adapters:
        use = require_peft().functional.set_adapter
        use(model, INITIAL, inference_mode=True)
        try:
            yield
        finally:
            use(model, TRAINED)
        return
    _enable(model, False)
    try:
        yield
    finally:
        _enable(model, True)


def _enable(model: PreTrainedModel, enabled: bool) -> None:
    # `PreTrainedModel.enable_adapters` leaves out the modules that are trained whole.
    for module in model.modules():
        if isinstance(module, adapted_kinds()):
            layer: Any = module
            layer.enable_adapters(enabled)


def adapted_kinds() -> tuple[type[nn.Module], ...]:
    """Return the classes of the modules that peft puts in the place of a model's own."""
    peft: Any = require_peft()
    return peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.other.AuxiliaryTrainingWrapper


def has_adapters(model: PreTrainedModel) -> bool:
    """Return whether adapters were added."""
    # The flag that `save_pretrained` goes by. Its public relative, `active_adapters`, raises where there are none.
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def trains_base_weights(model: PreTrainedModel) -> bool:
    """Return whether weights are trained that no adapter holds, so that the initial policy is not in the model."""
    config: Any = model.peft_config[TRAINED]
    return config.bias != "none"


def require_peft() -> Any:
    """Return the module peft; raise `UserError` where it is not installed."""
    try:
        import peft.functional
    except ImportError:
        raise UserError("lora: peft is not installed; run pip install 'grpovi-lightning[peft]'") from None
    return peft
