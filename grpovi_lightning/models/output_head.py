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
        self.body, self.output = model.base_model, model.get_output_embeddings()
        config = model.config.get_text_config()
        self.factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self.softcap = getattr(config, "final_logit_softcapping", None)

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
    if not isinstance(model.get_output_embeddings(), nn.Module) or model.base_model is model:
        return whole
    parts = Split(model)
    ids = torch.arange(6, device=model.device)[None]
    with torch.no_grad():
        found = parts.head(parts.states(6, input_ids=ids, use_cache=False))
        return parts if agrees(found, whole.states(6, input_ids=ids, use_cache=False)) else whole
