"""Policies of a few thousand parameters, and rollouts of them."""

import torch

from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.rollout.vllm import ColocatedVLLM
from grpovi_lightning.structures import PromptBatch

TEXTS = ["write about the red fox and the boat , happy", "sad", "the old house", "a blue boat finds the fox"]
ENDS = [1, 5, 11, 20, 33]


def loaded(folder, ends=ENDS, **source):
    policy = PretrainedCausalLM(str(folder), **source).load()
    policy.end_token_ids = ends
    return policy


def generate(policy, decoder, group_size=4, seed=3, step=2, texts=TEXTS, choose=None, **sampling):
    chosen = {} if choose is None else {"choose": choose}
    engine = RolloutEngine(SamplingConfig(**{"max_completion_length": 16} | sampling), decoder, **chosen)
    prompts = PromptBatch(texts, torch.arange(50, 50 + len(texts)), {})
    return engine.generate(policy, prompts, group_size, seed, step)


def moved(policy, by=0.05):
    """Change every trained weight in place, as an update does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def eager(**settings):
    """vLLM in this process, with little memory and without compiling anything."""
    return ColocatedVLLM(**{"kv_cache_gb": 0.05, "options": {"enforce_eager": True}} | settings)
