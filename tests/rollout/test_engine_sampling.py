import pytest
import torch
from models.tiny_models import language_model
from scipy.stats import chisquare

from grpovi_lightning.errors import UserError
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.structures import PromptBatch

TEXTS = ["write about the red fox and the boat", "the old house", "sad"]
PROMPTS = PromptBatch(TEXTS, torch.arange(3), {})


def generate(policy, group_size=6, **sampling):
    engine = RolloutEngine(SamplingConfig(**{"max_completion_length": 12} | sampling))
    return engine.generate(policy, PROMPTS, group_size, seed=1, step=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mistral", "gemma2"])
def test_old_logprobs_are_those_that_training_computes(family, tiny_tokenizer):
    policy = language_model(family, tiny_tokenizer)
    policy.end_token_ids = [1, 5, 11, 20, 33]

    rollout = generate(policy, temperature=0.8, top_k=20)

    statistics = policy.completion_statistics(rollout, 0.8)
    mask = rollout.completion_mask
    torch.testing.assert_close(rollout.old_logprobs[mask], statistics.logprobs[mask], atol=1e-5, rtol=0)
    assert float(rollout.old_logprobs[~mask].abs().sum()) == 0.0


def test_a_completion_ends_with_the_first_of_any_end_token_and_keeps_it(policy):
    rollout = generate(policy, group_size=20)

    ends = set(policy.end_token_ids)
    used = set()
    for ids, mask, cut in zip(rollout.completion_ids, rollout.completion_mask, rollout.truncated, strict=True):
        length = int(mask.sum())
        assert mask.tolist() == [True] * length + [False] * (len(mask) - length)
        tokens = ids[:length].tolist()
        assert not ends & set(tokens[:-1])
        assert (tokens[-1] in ends) == (not cut)
        assert length == 12 if cut else length <= 12
        assert set(ids[length:].tolist()) <= {policy.pad_token_id}
        used |= ends & set(tokens)
    assert len(used) >= 3
    assert 0 < int(rollout.truncated.sum()) < 60


def test_an_end_token_at_the_very_last_place_is_no_cut(policy):
    free = generate(policy, group_size=30)
    ended = ~free.truncated & (free.lengths >= 4)
    row = int(ended.nonzero()[0])
    length = int(free.lengths[row])

    assert not generate(policy, group_size=30, max_completion_length=length).truncated[row]
    assert generate(policy, group_size=30, max_completion_length=length - 1).truncated[row]


def test_completions_are_as_wide_as_the_longest_of_them(policy):
    sad = policy.encode(["sad"])[0][0]
    policy.end_token_ids = [token for token in range(41) if token not in (sad, 22, 23)]

    rollout = generate(policy, max_completion_length=30)

    assert rollout.completion_ids.shape[1] == int(rollout.lengths.max()) < 30


def test_texts_are_the_kept_tokens_without_special_ones(policy):
    rollout = generate(policy)

    for text, ids, mask in zip(rollout.texts, rollout.completion_ids, rollout.completion_mask, strict=True):
        assert text == policy.tokenizer.decode(ids[mask], skip_special_tokens=True)
        assert "<eos>" not in text and "<pad>" not in text


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_of_the_first_token_are_those_of_the_tempered_softmax(policy, temperature):
    prompts = PromptBatch(["write about the fox"], torch.tensor([5]), {})
    engine = RolloutEngine(SamplingConfig(max_completion_length=1, temperature=temperature))
    n = 4000
    ids = policy.encode_prompts(prompts.texts)[0]
    p = (policy.model(ids).logits[0, -1].double() / temperature).softmax(-1).detach()

    drawn = engine.generate(policy, prompts, n, seed=3, step=0).completion_ids[:, 0]

    expected, observed = n * p, torch.bincount(drawn, minlength=len(p)).double()
    # Rare tokens share a cell with the most frequent one: the statistic needs a few expected counts a cell.
    cell = torch.where(expected < 5, int(expected.argmax()), torch.arange(len(p)))
    observed, expected = (torch.zeros(len(p)).double().scatter_add(0, cell, x) for x in (observed, expected))
    used = expected > 0
    assert int(used.sum()) > 10
    assert chisquare(observed[used].numpy(), expected[used].numpy()).pvalue > 1e-3


def test_frequencies_would_show_a_wrong_temperature(policy):
    prompts = PromptBatch(["write about the fox"], torch.tensor([5]), {})
    engine = RolloutEngine(SamplingConfig(max_completion_length=1, temperature=1.2))
    p = policy.model(policy.encode_prompts(prompts.texts)[0]).logits[0, -1].double().softmax(-1).detach()

    drawn = engine.generate(policy, prompts, 4000, seed=3, step=0).completion_ids[:, 0]

    assert chisquare(torch.bincount(drawn, minlength=len(p)).double().numpy(), (4000 * p).numpy()).pvalue < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_top_k_1_equals_greedy_decoding_by_transformers(family, tiny_tokenizer):
    policy = language_model(family, tiny_tokenizer)
    ids, mask = policy.encode_prompts(TEXTS)

    rollout = generate(policy, group_size=2, top_k=1)

    expected = policy.model.generate(input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=12)
    expected = expected[:, ids.shape[1] :]
    for p in range(3):
        for row in (2 * p, 2 * p + 1):
            kept = rollout.completion_ids[row][rollout.completion_mask[row]]
            assert kept.tolist() == expected[p, : len(kept)].tolist()
            assert bool(rollout.truncated[row]) == (1 not in expected[p].tolist())


@pytest.mark.parametrize("sampling", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}])
def test_filters_keep_allowed_tokens_only_and_leave_the_logprobs_unfiltered(policy, sampling):
    rollout = generate(policy, group_size=200, max_completion_length=1, temperature=1.3, **sampling)
    ids, mask = policy.encode_prompts(TEXTS)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    logits = policy.model(ids, attention_mask=mask.long(), position_ids=positions).logits[:, -1].double() / 1.3

    for p, probabilities in enumerate(logits.softmax(-1)):
        ordered, order = probabilities.sort(descending=True)
        match sampling:
            case {"top_k": k}:
                allowed = order[:k]
            case {"top_p": share}:
                allowed = order[: int((ordered.cumsum(0) < share).sum()) + 1]
            case {"min_p": share}:
                allowed = order[ordered >= share * ordered[0]]
        drawn = rollout.completion_ids[200 * p : 200 * (p + 1), 0]
        assert set(drawn.tolist()) == set(allowed.tolist())
        expected = probabilities[drawn].log().float()
        torch.testing.assert_close(rollout.old_logprobs[200 * p : 200 * (p + 1), 0], expected, atol=1e-5, rtol=0)


def test_the_policy_keeps_its_mode_and_gets_no_gradient(policy):
    policy.train()

    rollout = generate(policy)

    assert policy.model.training
    assert not rollout.old_logprobs.requires_grad
    assert all(p.grad is None for p in policy.parameters())


def test_a_prompt_that_leaves_no_room_for_its_completion_is_refused_by_name(policy):
    with pytest.raises(
        UserError, match=r"'write about the red fox and the boat': got 8 tokens and 121 .* 128 positions"
    ):
        generate(policy, max_completion_length=121)


def test_a_prompt_that_just_fits_is_sampled(policy):
    assert int(generate(policy, max_completion_length=120).lengths.max()) <= 120


def test_an_empty_prompt_is_refused(policy):
    with pytest.raises(UserError, match="prompt '' has no tokens"):
        RolloutEngine(SamplingConfig()).generate(policy, PromptBatch([""], torch.tensor([0]), {}), 2, 1, 0)
