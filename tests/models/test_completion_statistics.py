import pytest
import torch
from tiny_models import language_model, rollout, row_by_row_logprobs, set_capabilities

FULL_ATTENTION = ["llama", "gpt2", "gpt_neox", "qwen2"]
SLIDING = ["mistral", "gemma2", "gemma3_text"]
LENGTHS = ([3, 9, 1], [[5, 1, 8], [2, 8, 3], [4, 6, 1]])


def gradients(policy, data, weights):
    policy.zero_grad()
    statistics = policy.completion_statistics(data, 0.7)
    torch.where(data.completion_mask, statistics.logprobs * weights, 0.0).sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def relative_difference(first, second):
    assert first.keys() == second.keys()
    scale = torch.cat([g.flatten() for g in second.values()]).norm()
    return float(torch.cat([(first[n] - second[n]).flatten() for n in second]).norm() / scale)


def reference_gradients(policy, data, weights):
    policy.zero_grad()
    rows = row_by_row_logprobs(policy.model, data, 0.7)
    sum((row * weights[i, : len(row)]).sum() for i, row in enumerate(rows)).backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FULL_ATTENTION + SLIDING)
def test_logprobs_and_gradients_equal_unpadded_forward_passes_of_single_completions(family, tiny_tokenizer):
    policy, data = language_model(family, tiny_tokenizer), rollout(*LENGTHS)
    weights = torch.randn(data.completion_ids.shape, generator=torch.Generator().manual_seed(1))

    statistics = policy.completion_statistics(data, 0.7)

    for row, expected in enumerate(row_by_row_logprobs(policy.model, data, 0.7)):
        torch.testing.assert_close(statistics.logprobs[row, : len(expected)].double(), expected, atol=1e-5, rtol=0)
    difference = relative_difference(gradients(policy, data, weights), reference_gradients(policy, data, weights))
    assert difference < 1e-5


@pytest.mark.parametrize("family", FULL_ATTENTION + SLIDING)
def test_running_a_prompt_once_for_its_group_gives_the_logprobs_and_gradients_of_the_plain_path(family, tiny_tokenizer):
    policy, data = language_model(family, tiny_tokenizer), rollout(*LENGTHS)
    weights = torch.randn(data.completion_ids.shape, generator=torch.Generator().manual_seed(2))
    assert policy.passes.capabilities.shares_prefix
    shared, shared_gradients = policy.completion_statistics(data, 0.7), gradients(policy, data, weights)

    set_capabilities(policy, shares_prefix=False)
    plain, plain_gradients = policy.completion_statistics(data, 0.7), gradients(policy, data, weights)

    mask = data.completion_mask
    torch.testing.assert_close(shared.logprobs[mask], plain.logprobs[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(shared.entropies[mask], plain.entropies[mask], atol=1e-5, rtol=0)
    assert relative_difference(shared_gradients, plain_gradients) < 1e-5


def test_the_window_of_the_sliding_models_here_is_short_enough_to_matter(tiny_tokenizer):
    data = rollout(*LENGTHS)
    narrow = language_model("mistral", tiny_tokenizer)
    wide = language_model("mistral", tiny_tokenizer, sliding_window=None)
    mask = data.completion_mask

    difference = narrow.completion_statistics(data, 1.0).logprobs - wide.completion_statistics(data, 1.0).logprobs

    assert float(difference.detach()[mask].abs().max()) > 1e-2


@pytest.mark.parametrize("shares_prefix", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_more_left_padding_changes_no_logprob(family, shares_prefix, tiny_tokenizer):
    policy = language_model(family, tiny_tokenizer)
    set_capabilities(policy, shares_prefix=shares_prefix)
    short, long = rollout(*LENGTHS), rollout(*LENGTHS, extra_padding=11)
    assert long.prompt_ids.shape[1] == short.prompt_ids.shape[1] + 11

    few, many = (policy.completion_statistics(data, 1.0).logprobs for data in (short, long))

    torch.testing.assert_close(many[short.completion_mask], few[short.completion_mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_part_of_the_prompts_has_the_values_it_has_in_the_whole(family, tiny_tokenizer):
    policy, data = language_model(family, tiny_tokenizer), rollout(*LENGTHS)
    weights = torch.randn(data.completion_ids.shape, generator=torch.Generator().manual_seed(3))
    whole = policy.completion_statistics(data, 1.0)

    # The first completions are the longest, and the last prompt is the shortest: both lose padding.
    chosen = [2, 1]
    rows = data.rows(chosen)
    part = policy.completion_statistics(data.select(chosen), 1.0)

    length = part.logprobs.shape[1]
    mask = data.completion_mask[rows][:, :length]
    assert mask.sum() == data.completion_mask[rows].sum()
    for found, expected in zip(part, whole, strict=True):
        torch.testing.assert_close(found[mask], expected[rows][:, :length][mask], atol=1e-5, rtol=0)
    first = gradients(policy, data.select([0]), weights[:3])
    rest = gradients(policy, data.select(chosen), weights[rows][:, :length])
    summed = {name: first[name] + rest[name] for name in first}
    assert relative_difference(summed, gradients(policy, data, weights)) < 1e-5


def test_completions_of_one_token_need_the_prompt_pass_only(tiny_tokenizer):
    policy, data = language_model("llama", tiny_tokenizer), rollout([3, 5], [[1, 1], [1, 1]])

    statistics = policy.completion_statistics(data, 1.0)

    expected = torch.stack(row_by_row_logprobs(policy.model, data))
    torch.testing.assert_close(statistics.logprobs.double(), expected, atol=1e-5, rtol=0)


def test_entropies_are_those_of_the_tempered_distribution(tiny_tokenizer):
    policy, data = language_model("llama", tiny_tokenizer), rollout([4], [[3, 3]])
    sequence = torch.cat([data.prompt_ids[0], data.completion_ids[0]])
    logits = policy.model(sequence[None]).logits[0, 3:-1].double() / 2.0
    p = logits.softmax(-1)

    entropies = policy.completion_statistics(data, 2.0).entropies[0]

    torch.testing.assert_close(entropies.double(), -(p * p.log()).sum(-1), atol=1e-5, rtol=0)
    assert not entropies.requires_grad
