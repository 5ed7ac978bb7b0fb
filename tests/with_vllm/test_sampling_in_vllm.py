from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from with_vllm.policies import ENDS, eager, generate, loaded

from grpovi_lightning.rollout import GroupDecoder, SamplingConfig, most_probable
from grpovi_lightning.rollout.vllm import VLLMDecoder

SETTINGS = {
    "as they are": {},
    "temperature": {"temperature": 0.7},
    "high temperature": {"temperature": 1.8},
    "top-k": {"top_k": 5, "temperature": 1.5},
    "top-p": {"top_p": 0.8, "temperature": 1.3},
    "min-p": {"min_p": 0.2, "temperature": 1.3},
    "repetition penalty": {"repetition_penalty": 1.7, "temperature": 0.8},
    "all that go together": {"top_k": 12, "top_p": 0.9, "repetition_penalty": 1.3, "temperature": 1.2},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
N = 4000
TEXT = "write about the red fox and the boat"


@pytest.fixture(scope="module")
def decoder():
    return VLLMDecoder(eager())


@pytest.fixture(scope="module")
def policy(vllm_policy_folder):
    return loaded(vllm_policy_folder)


def expected_pairs(policy, settings):
    """(first token, second or None behind an end) -> probability, by passes over whole sequences."""
    processors = SamplingConfig(**settings).processors()

    def next_probabilities(rows):
        with torch.no_grad():
            return processors(rows, policy.model(rows).logits[:, -1].float()).double().softmax(dim=-1)

    prompt = policy.encode_prompts([TEXT])[0]
    first = next_probabilities(prompt)[0]
    tokens = torch.arange(len(first))
    second = next_probabilities(torch.cat([prompt.expand(len(first), -1), tokens[:, None]], dim=1))
    found = {(t, None): float(first[t]) for t in policy.end_token_ids}
    for t in set(tokens.tolist()) - set(policy.end_token_ids):
        found |= {(t, u): float(first[t] * second[t, u]) for u in tokens.tolist()}
    return found


@every_setting
def test_tokens_follow_the_distribution_that_our_own_filters_leave(policy, decoder, settings):
    expected = expected_pairs(policy, settings)
    rollout = generate(policy, decoder, N, texts=[TEXT], max_completion_length=2, **settings)
    rows = [row[kept].tolist() for row, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]
    counts = Counter((row[0], row[1] if len(row) > 1 else None) for row in rows)

    assert all(expected[pair] > 0 for pair in counts)  # nothing that a filter removes
    common = [pair for pair, probability in expected.items() if N * probability >= 5]
    rest = 1.0 - sum(expected[pair] for pair in common)
    observed = [counts[pair] for pair in common] + [N - sum(counts[pair] for pair in common)]
    predicted = [N * expected[pair] for pair in common] + [N * rest]
    if predicted[-1] < 5:  # too few for a cell of its own
        observed[-2:], predicted[-2:] = [sum(observed[-2:])], [sum(predicted[-2:])]
    assert len(observed) >= 4
    p = chisquare(observed, predicted).pvalue
    print(f"{len(observed)} cells, p = {p:.3f}")
    assert p > 1e-3


@every_setting
def test_logprobs_are_those_of_the_policy_at_the_temperature_without_filters(policy, decoder, settings):
    rollout = generate(policy, decoder, **settings)

    with torch.no_grad():
        expected = policy.completion_statistics(rollout, settings.get("temperature", 1.0)).logprobs
    torch.testing.assert_close(rollout.old_logprobs, expected, atol=1e-4, rtol=0)


def test_completions_end_with_the_first_of_the_end_tokens_or_are_truncated(policy, decoder):
    rollout = generate(policy, decoder, 32)

    lasts = [row[kept][-1].item() for row, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]
    assert {last for last, cut in zip(lasts, rollout.truncated, strict=True) if not cut} == set(ENDS)
    for row, kept, cut in zip(rollout.completion_ids, rollout.completion_mask, rollout.truncated, strict=True):
        ends = sum(token in ENDS for token in row[kept].tolist())
        assert ends == (0 if cut else 1)
        assert not cut or kept.sum() == 16
    assert 0 < rollout.truncated.sum() < len(rollout.truncated)


def test_the_same_seed_gives_the_same_completions_and_another_others(policy, decoder):
    first, again, other = (generate(policy, decoder, 8, seed=seed) for seed in (3, 3, 4))

    assert torch.equal(first.completion_ids, again.completion_ids)
    assert torch.equal(first.old_logprobs, again.old_logprobs)
    assert first.texts != other.texts
    assert len(set(first.texts)) > 16


def test_completions_depend_neither_on_the_group_size_nor_on_other_prompts(policy, decoder):
    many, few = (generate(policy, decoder, size) for size in (8, 2))

    assert [many.texts[p * 8 + g] for p in range(4) for g in range(2)] == list(few.texts)


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_the_most_probable_completion_is_that_of_our_own_decoder(policy, decoder, penalty):
    settings = {"group_size": 1, "choose": most_probable, "repetition_penalty": penalty}
    found, expected = (generate(policy, which, **settings) for which in (decoder, GroupDecoder()))

    assert found.texts == expected.texts
    torch.testing.assert_close(found.old_logprobs, expected.old_logprobs, atol=1e-4, rtol=0)
