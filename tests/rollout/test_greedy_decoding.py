"""Greedy decoding against the generation of `transformers`."""

import pytest
import torch
from models.tiny_models import language_model
from transformers import GenerationConfig

from grpovi_lightning.ops import pad_left
from grpovi_lightning.rollout import (
    GroupDecoder,
    PlainDecoder,
    RolloutEngine,
    SamplingConfig,
    StaticDecoder,
    most_probable,
)
from grpovi_lightning.structures import PromptBatch

TEXTS = ["write about the red fox and the boat", "the old house", "sad"]
PROMPTS = PromptBatch(TEXTS, torch.arange(3), {})
LENGTH = 12


def greedy(policy, decoder=None, group_size=1, seed=1, step=0, prompts=PROMPTS, **sampling):
    settings = SamplingConfig(max_completion_length=LENGTH, **sampling)
    return RolloutEngine(settings, decoder, most_probable).generate(policy, prompts, group_size, seed, step)


def tokens(rollout):
    return [ids[kept].tolist() for ids, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]


def by_transformers(policy, penalty=1.0):
    """Each prompt by itself, to its first end token."""
    found = []
    for row in policy.prompt_tokens(TEXTS):
        ids, mask = pad_left([row], policy.pad_token_id)
        config = GenerationConfig(
            max_new_tokens=LENGTH,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=policy.end_token_ids,
            pad_token_id=policy.pad_token_id,
        )
        with torch.no_grad():
            out = policy.model.generate(ids, attention_mask=mask.long(), generation_config=config)
        found.append(out[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_it_is_what_transformers_generates_without_sampling(family, penalty, tiny_tokenizer):
    policy = language_model(family, tiny_tokenizer)
    assert tokens(greedy(policy, repetition_penalty=penalty)) == by_transformers(policy, penalty)


@pytest.mark.parametrize(
    "decoder", [GroupDecoder(), PlainDecoder(), StaticDecoder(block=4)], ids=lambda d: type(d).__name__
)
def test_every_decoder_can(policy, decoder):
    assert tokens(greedy(policy, decoder)) == by_transformers(policy)


def test_all_members_of_a_group_are_the_same_whatever_the_seed_the_step_and_the_batch(policy):
    first = tokens(greedy(policy))
    assert tokens(greedy(policy, group_size=2, seed=7, step=9)) == [row for row in first for _ in range(2)]
    assert tokens(greedy(policy, prompts=PROMPTS.select([2, 0]))) == [first[2], first[0]]


def test_neither_temperature_nor_filters_change_it(policy):
    filtered = SamplingConfig(LENGTH, temperature=0.3, top_k=3, top_p=0.5, min_p=0.2, repetition_penalty=1.3)
    unfiltered = filtered.unfiltered()
    assert unfiltered == SamplingConfig(LENGTH, repetition_penalty=1.3)
    rollouts = [
        RolloutEngine(settings, None, most_probable).generate(policy, PROMPTS, 1, 1, 0)
        for settings in (filtered, unfiltered)
    ]
    assert tokens(rollouts[0]) == tokens(rollouts[1])
    assert tokens(rollouts[0]) != tokens(greedy(policy))  # the penalty does


def test_kept_log_probabilities_are_those_of_the_policy(policy):
    rollout = greedy(policy)
    mask = rollout.completion_mask
    logprobs = policy.completion_statistics(rollout, 1.0).logprobs
    torch.testing.assert_close(rollout.old_logprobs[mask], logprobs[mask], atol=1e-5, rtol=0)
