"""Low-rank adapters (LoRA, arXiv 2106.09685), with which a policy trains only few weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from grpovi_lightning.errors import UserError, at_least_one


@dataclass(frozen=True)
class LoRA:
    """Settings of the adapters, under peft's names.

    There is no dropout, because sampling and training must see the same policy.

    Attributes:
        r: rank of the update of a weight matrix.
        lora_alpha: the update is scaled by lora_alpha / r.
        target_modules: names of the adapted linear layers; `all-linear` is all but the output embedding.
        use_rslora: whether the scale is lora_alpha / sqrt(r) instead (arXiv 2312.03732).
    """

    r: int = 16
    lora_alpha: float = 32.0
    target_modules: list[str] | str = "all-linear"
    use_rslora: bool = False

    def __post_init__(self) -> None:
        at_least_one("lora.", r=self.r)
        if not 0.0 < self.lora_alpha < float("inf"):
            raise UserError(f"lora.lora_alpha: got {self.lora_alpha}, expected a number above 0")

    def check(self) -> None:
        """Raise `UserError` where peft is not installed."""
        _peft()

    def add_to(self, model: PreTrainedModel, task: str = "CAUSAL_LM") -> None:
        """Add fresh adapters, which change nothing yet, and freeze all other weights.

        Args:
            model: gets them.
            task: peft's name of what the model is for; `all-linear` leaves out the output layer of that.

        Raises:
            UserError: the model has no layer of that name.
        """
        settings: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        config = _peft().LoraConfig(task_type=task, lora_dropout=0.0, **settings)
        try:
            model.add_adapter(config)
        except ValueError as error:
            raise UserError(
                f"lora.target_modules: got {self.target_modules}; {str(error).splitlines()[0][:200]}"
            ) from error
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Have the model compute without its adapters."""
    model.disable_adapters()  # type: ignore[operator]
    try:
        yield
    finally:
        model.enable_adapters()  # type: ignore[operator]


def has_adapters(model: PreTrainedModel) -> bool:
    """Return whether adapters were added."""
    # The flag that `save_pretrained` goes by. Its public relative, `active_adapters`, raises where there are none.
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy with the adapters worked into the weights, which can be loaded without peft."""
    layer_class = _peft().tuners.tuners_utils.BaseTunerLayer
    whole = copy.deepcopy(model)
    embeddings = whole.get_input_embeddings(), whole.get_output_embeddings()
    if embeddings[1] is not None and any(isinstance(module, layer_class) for module in embeddings):
        _untie(whole)
    # A list first, because the loop replaces modules.
    for name, layer in [(name, module) for name, module in whole.named_modules() if isinstance(module, layer_class)]:
        layer.merge()  # type: ignore[operator]
        parent, _, child = name.rpartition(".")
        base = layer.get_base_layer()  # type: ignore[operator]
        assert isinstance(base, nn.Module)
        setattr(whole.get_submodule(parent), child, base)
    # peft can take adapters out of its own wrapper only, not out of a `transformers` model; while this flag is set,
    # `save_pretrained` would write adapters and nothing else.
    whole._hf_peft_config_loaded = False
    return whole.requires_grad_(True)


def _untie(model: PreTrainedModel) -> None:
    """Give the output embedding weights of its own: merged into shared ones, an adapter of one would change both."""
    output: Any = model.get_output_embeddings()
    output = getattr(output, "base_layer", output)
    output.weight = nn.Parameter(output.weight.detach().clone())
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # by which `save_pretrained` leaves weights out


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("lora: peft is not installed; run pip install 'grpovi-lightning[peft]'") from None
    return peft
