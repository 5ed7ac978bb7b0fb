"""From prompts to completions."""

from grpovi_lightning.rollout.compiled import CompiledDecoder, StaticDecoder
from grpovi_lightning.rollout.decoding import Decoder, GroupDecoder, PlainDecoder
from grpovi_lightning.rollout.engine import RolloutEngine
from grpovi_lightning.rollout.sampling import SamplingConfig, most_probable
from grpovi_lightning.rollout.vllm import VLLMDecoder

__all__ = [
    "CompiledDecoder",
    "Decoder",
    "GroupDecoder",
    "PlainDecoder",
    "RolloutEngine",
    "SamplingConfig",
    "StaticDecoder",
    "VLLMDecoder",
    "most_probable",
]
