"""What `transformers` knows about a model but does not tell in public: all its private names that a pass needs."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


def keeps_other_state(model: PreTrainedModel) -> bool:
    """Return whether the model carries a state from token to token that is no cache of keys and values."""
    # Generation itself asks this flag; the configuration does not tell it for all recurrent families.
    return bool(getattr(model, "_is_stateful", False))


def uses_attention_interface(model: PreTrainedModel) -> bool:
    """Return whether the model looks its attention function up by name, so that another one can be put there."""
    # `set_attn_implementation`, the public way to change the name, only warns where that has no effect.
    return bool(getattr(model, "_supports_attention_backend", False))


@contextmanager
def attention_named(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Have the model use the attention function that is registered under this name; restore its own one afterwards."""
    # There is no public way to read the name, and the public way to set it checks every part of the model: too much
    # work for what happens at each token.
    config = model.config
    before = config._attn_implementation
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = before
