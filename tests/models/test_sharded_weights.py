"""A model whose weights two processes share computes what one with whole weights does, for every family."""

import copy

import pytest
import torch
from helpers.two_processes import run_in_two_processes
from models.tiny_models import CONFIGS, language_model, rollout
from modules.grpo_runs import relative_difference
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoTokenizer

from grpovi_lightning.models import LoRA, Sharding
from grpovi_lightning.models.sharding import clip_gradients, whole
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.structures import PromptBatch

DATA = rollout([3, 5], [[2, 4], [3, 1]])
PROMPTS = PromptBatch(["the red fox", "a dog"], torch.tensor([0, 1]), {})
# Tied and untied embeddings, windows, experts, recurrent layers, caches that are not shared.
FAMILIES = ("llama", "gpt2", "gemma2", "mixtral", "bloom", "mamba", "jamba", "phi3", "granite")
assert {*FAMILIES} <= CONFIGS.keys()


def gradients(policy):
    """Take a step's gradient in two passes, as micro-batches do; return statistics, gradients and their norm."""
    policy.zero_grad()
    with policy.weights.gathered():
        for _ in range(2):
            found = policy.completion_statistics(DATA, 0.9, True)
            (found.logprobs.square().sum() + found.entropies.sum()).backward()
    taken = {name: whole(p.grad).clone() for name, p in policy.named_parameters() if p.grad is not None}
    return found, taken, clip_gradients(list(policy.parameters()), 1.0)


def compare(rank, folder, tokenizer_folder, gather, lora):
    tokenizer, mesh = AutoTokenizer.from_pretrained(tokenizer_folder), init_device_mesh("cpu", (2,))
    engine = RolloutEngine(SamplingConfig(max_completion_length=6))
    for family in FAMILIES[: 3 if lora else None]:
        alone = language_model(family, tokenizer)
        if lora:
            torch.manual_seed(0)  # the processes have to begin alike
            LoRA(r=2).add_to(alone.model)
        shared = copy.deepcopy(alone)
        Sharding(gather).spread(shared, mesh, "32-true")
        assert shared.is_sharded and not alone.is_sharded
        # One process has more completions to finish than the other.
        prompts = PROMPTS if rank == 0 else PROMPTS.select([0])
        assert engine.generate(shared, prompts, 3, 1, 0).texts == engine.generate(alone, prompts, 3, 1, 0).texts, family
        (found, taken, norm), (expected, taken_alone, norm_alone) = gradients(shared), gradients(alone)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert relative_difference(taken, taken_alone) < 1e-5, family
        torch.testing.assert_close(norm, norm_alone, rtol=1e-5, atol=0.0)
        plain, expected = shared.weights.plain_model(), alone.model.state_dict()
        assert (plain is None) == (rank == 1)
        if plain is not None:
            found = plain.state_dict()
            assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
            untied = {name for name, _ in alone.model.named_parameters()}
            assert {name for name, _ in plain.named_parameters()} == untied, family


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("gather", ["once", "layers"])
def test_shared_weights_give_the_completions_gradients_and_files_of_whole_ones(
    tmp_path, tokenizer_folder, gather, lora
):
    run_in_two_processes(compare, tmp_path, str(tokenizer_folder), gather, lora)
