"""A causal language model in two steps, so that logits need not exist for all tokens at once.

`states` runs the model and `logits` reads what it gives. Both classes have the same two methods: where the output head
can be applied separately the states are hidden ones, [B, T, D], else they are the logits themselves, [B, T, V].
`cache_argument` is the name under which `states` takes a cache.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class FusedHead:
    """A model whose output head cannot be applied separately: its states are its logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache_argument = _cache_argument(model)

    def states(self, last: int, **inputs: Any) -> Tensor:
        """Return the logits of the last tokens, [B, last, V]."""
        return self.model(logits_to_keep=last, **inputs).logits[:, -last:]

    def logits(self, states: Tensor) -> Tensor:
        """Return the states, [..., V]."""
        return states


class SeparateHead:
    """The body of a model, and the head that turns its last hidden states into logits.

    The head is the output embedding with the scale and the soft cap that configurations name. Whether that is all of it
    is for `probing` to find out.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.output = model, model.get_output_embeddings()
        self.body: Callable[..., Any] = model.base_model
        self.cache_argument = _cache_argument(model.base_model)
        config = model.config.get_text_config()
        # Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`; Gemma 2 has the soft cap.
        self.factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self.softcap = getattr(config, "final_logit_softcapping", None)

    def compiled(self) -> "SeparateHead":
        """Return the same weights with a body that `torch.compile` turns into code for each shape that it meets."""
        copy = SeparateHead(self.model)
        # On a CPU the kernels are called from C++ too: a token is so little work that Python would take a tenth of it.
        options: dict[str, Any] = {"cpp_wrapper": self.model.device.type == "cpu"}
        copy.body = torch.compile(self.body, dynamic=False, options=options)
        return copy

    def states(self, last: int, **inputs: Any) -> Tensor:
        """Return the hidden states of the last tokens, [B, last, D]."""
        return self.body(**inputs).last_hidden_state[:, -last:]

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits [..., V] of hidden states [..., D]."""
        logits = self.output(states)  # type: ignore[misc]
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _cache_argument(module: nn.Module) -> str:
    # `transformers` 5.24 renamed it, but models that come with their own code keep the old name.
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
