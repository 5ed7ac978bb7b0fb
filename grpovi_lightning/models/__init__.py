"""Loading causal language models and reward models."""

from grpovi_lightning.models.adapters import LoRA
from grpovi_lightning.models.classifiers import load_classifier
from grpovi_lightning.models.language_model import LanguageModel
from grpovi_lightning.models.quantization import Quantization
from grpovi_lightning.models.reference import SharedReference
from grpovi_lightning.models.sharding import Sharding
from grpovi_lightning.models.sources import CausalLMSource, NewCausalLM, PretrainedCausalLM

__all__ = [
    "CausalLMSource",
    "LanguageModel",
    "LoRA",
    "NewCausalLM",
    "PretrainedCausalLM",
    "Quantization",
    "Sharding",
    "SharedReference",
    "load_classifier",
]
