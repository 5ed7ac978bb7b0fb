"""A causal language model in two halves, so that logits need not exist for all tokens at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Whole:
    """A model that cannot be split: its states are its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes the causal language model."""
        self.model = model

    def states(self, last: int, **inputs: Any) -> Tensor:
        """What the head reads for the last tokens, [B, last, V]."""
        return self.model(logits_to_keep=last, **inputs).logits[:, -last:]

    def head(self, states: Tensor) -> Tensor:
        """Logits [..., V]."""
        return states


class Split:
    """The body of a model, and the head that turns its last hidden states into logits.

    The head is the output embedding with the scales and the soft cap that configurations name. `split` checks that it
    is all of it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes the causal language model."""
        self.model, self.output = model, model.get_output_embeddings()
        self.body: Callable[..., Any] = model.base_model
        config = model.config.get_text_config()
        self.factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self.softcap = getattr(config, "final_logit_softcapping", None)

    def compiled(self) -> "Split":
        """The same weights, with a body that `torch.compile` turns into code for each of the shapes it meets.

        On a CPU what calls the kernels is C++ as well: a token is so little work that Python would take a tenth of it.
        """
        copy = Split(self.model)
        options: dict[str, Any] = {"cpp_wrapper": self.model.device.type == "cpu"}
        copy.body = torch.compile(self.body, dynamic=False, options=options)
        return copy

    def states(self, last: int, **inputs: Any) -> Tensor:
        """What the head reads for the last tokens, [B, last, D]."""
        return self.body(**inputs).last_hidden_state[:, -last:]

    def head(self, states: Tensor) -> Tensor:
        """Logits [..., V]."""
        logits = self.output(states)  # type: ignore[misc]
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def split(model: PreTrainedModel, agrees: Callable[[Tensor, Tensor], bool]) -> Split | Whole:
    """Splits a model where both halves together give its own logits; else leaves it whole.

    Args:
        model: the causal language model.
        agrees: compares two tensors of logits.
    """
    whole = Whole(model)
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Module) or model.base_model is model:
        return whole
    parts = Split(model)
    ids = torch.arange(6, device=model.device)[None]
    inputs = {"input_ids": ids, "use_cache": False}
    factors: list[Tensor] = []

    def enlarge(module: nn.Module, arguments: Any, logits: Tensor) -> Tensor:
        """Makes them so large that a soft cap shows, whatever the weights."""
        factors.append(100.0 / logits.abs().max().clamp(min=1e-6))
        return logits * factors[0]

    hook = output.register_forward_hook(enlarge)
    try:
        with torch.no_grad():
            expected = whole.states(6, **inputs)
            return parts if agrees(parts.head(parts.states(6, **inputs)), expected) else whole
    except Exception:  # whatever the reason, the whole remains
        return whole
    finally:
        hook.remove()
