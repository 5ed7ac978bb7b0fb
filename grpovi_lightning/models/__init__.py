"""Loading causal language models and reward models."""

from grpovi_lightning.models.language_model import LanguageModel
from grpovi_lightning.models.sources import CausalLMSource, NewCausalLM, PretrainedCausalLM, load_classifier

__all__ = ["CausalLMSource", "LanguageModel", "NewCausalLM", "PretrainedCausalLM", "load_classifier"]
