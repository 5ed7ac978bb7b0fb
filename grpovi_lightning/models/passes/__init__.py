"""The forward passes of a causal language model, and the trial that tells which of them it can take.

From the bottom up: `output_head` and `cache_layers` hold the parts of a pass, `forward` puts them together, `probing`
tries them out on a few tokens, and `compiled_passes` compiles them. Private names of `transformers` are read in
`model_traits` only, those of `torch.compile` in `torch_compiler` only. Nothing here knows `LanguageModel`.
"""

from grpovi_lightning.models.passes.capabilities import Capabilities
from grpovi_lightning.models.passes.compiled_passes import CompiledPasses
from grpovi_lightning.models.passes.forward import ForwardPasses
from grpovi_lightning.models.passes.output_head import FusedHead, SeparateHead
from grpovi_lightning.models.passes.probing import find_capabilities
from grpovi_lightning.models.passes.torch_compiler import compiling

__all__ = [
    "Capabilities",
    "CompiledPasses",
    "ForwardPasses",
    "FusedHead",
    "SeparateHead",
    "compiling",
    "find_capabilities",
]
