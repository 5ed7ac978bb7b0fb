import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models.tiny_models import language_model, row_by_row_logprobs
from transformers import GenerationConfig

from grpovi_lightning.errors import UserError
from grpovi_lightning.randomness import sampling_uniforms
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.rollout.compiled import StaticDecoder
from grpovi_lightning.rollout.decoding import GroupDecoder, PlainDecoder, still_needed
from grpovi_lightning.structures import PromptBatch

FAMILIES = ["llama", "gpt2", "gpt_neox", "qwen2", "gemma2", "mistral", "gemma3_text"]
TEXTS = ["write about the red fox and the boat , happy", "sad", "the old house", "a blue boat finds the fox"]
ENDS = [1, 5, 11, 20, 33]
LENGTH = 16
SEED, STEP = 3, 2
DECODERS = {"groups": GroupDecoder(), "static": StaticDecoder(block=5), "plain": PlainDecoder()}
every_decoder = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


def tiny(family, tokenizer, ends=ENDS):
    policy = language_model(family, tokenizer)
    policy.end_token_ids = ends
    return policy


def generate(policy, decoder=None, numbers=(0, 1, 2, 3), group_size=4, **sampling):
    engine = RolloutEngine(SamplingConfig(**{"max_completion_length": LENGTH} | sampling), decoder)
    prompts = PromptBatch([TEXTS[i] for i in numbers], torch.tensor([50 + i for i in numbers]), {})
    return engine.generate(policy, prompts, group_size, SEED, STEP)


def completions(rollout):
    """(number of the prompt, member) -> tokens, log-probabilities and whether it was cut."""
    found = {}
    for row, (ids, kept, logprobs) in enumerate(
        zip(rollout.completion_ids, rollout.completion_mask, rollout.old_logprobs, strict=True)
    ):
        prompt, member = divmod(row, rollout.group_size)
        place = (int(rollout.prompts.indices[prompt]), member)
        found[place] = (ids[kept].tolist(), logprobs[kept], bool(rollout.truncated[row]))
    return found


def assert_same(found, expected):
    """The completions that both have are the same."""
    shared = found.keys() & expected.keys()
    assert shared
    for place in shared:
        assert found[place][0] == expected[place][0], place
        assert found[place][2] == expected[place][2], place
        torch.testing.assert_close(found[place][1], expected[place][1], atol=1e-5, rtol=0)


def assert_logprobs_are_those_of_full_passes(policy, rollout, temperature):
    with torch.no_grad():
        expected = row_by_row_logprobs(policy.model, rollout, temperature)
    for found, kept, row in zip(rollout.old_logprobs, rollout.completion_mask, expected, strict=True):
        torch.testing.assert_close(found[kept].double(), row, atol=1e-5, rtol=0)
    assert rollout.old_logprobs[~rollout.completion_mask].abs().sum() == 0.0


@every_decoder
@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_old_logprobs_are_those_of_an_unpadded_pass_over_each_completion(self, family, decoder, tiny_tokenizer):
        policy = tiny(family, tiny_tokenizer)
        assert policy.passes.capabilities.decodes_by_groups

        rollout = generate(policy, decoder, temperature=0.8, top_k=20)

        assert len(set(rollout.lengths.tolist())) >= 4
        assert_logprobs_are_those_of_full_passes(policy, rollout, 0.8)

    def test_a_completion_depends_on_no_other(self, family, decoder, tiny_tokenizer):
        policy = tiny(family, tiny_tokenizer)
        whole = completions(generate(policy, decoder))

        assert_same(completions(generate(policy, decoder, numbers=[3, 1, 0, 2])), whole)
        assert_same(completions(generate(policy, decoder, numbers=[1])), whole)
        ranks = [completions(generate(policy, decoder, numbers=numbers)) for numbers in ([0, 2], [1, 3])]
        assert_same(ranks[0] | ranks[1], whole)
        assert_same(completions(generate(policy, decoder, group_size=2)), whole)
        assert_same(completions(generate(policy, decoder, group_size=7)), whole)


@pytest.mark.parametrize("decoder", [GroupDecoder(), StaticDecoder(block=32)], ids=["groups", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_by_groups_draws_what_transformers_generation_draws(family, decoder, tiny_tokenizer):
    policy = tiny(family, tiny_tokenizer)
    by_groups, plain = generate(policy, decoder), generate(policy, PlainDecoder())

    assert torch.equal(by_groups.completion_ids, plain.completion_ids)
    assert torch.equal(by_groups.completion_mask, plain.completion_mask)
    assert torch.equal(by_groups.truncated, plain.truncated)
    torch.testing.assert_close(by_groups.old_logprobs, plain.old_logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_how_often_finished_rows_are_dropped_changes_nothing(family, share, tiny_tokenizer):
    policy = tiny(family, tiny_tokenizer)

    assert_same(completions(generate(policy, GroupDecoder(share))), completions(generate(policy, PlainDecoder())))


@pytest.mark.parametrize("interval", [3, 16])
@pytest.mark.parametrize("module", ["decoding", "compiled"])
def test_how_seldom_it_is_asked_whether_all_are_finished_changes_nothing(module, interval, tiny_tokenizer, monkeypatch):
    policy = tiny("mistral", tiny_tokenizer)
    expected = completions(generate(policy, PlainDecoder()))
    monkeypatch.setattr(f"grpovi_lightning.rollout.{module}.sync_interval", lambda tensor: interval)
    decoder = {"decoding": GroupDecoder(), "compiled": StaticDecoder()}[module]

    assert_same(completions(generate(policy, decoder)), expected)


def rows_fed(policy, **settings):
    """Numbers of tokens that the model reads in each of its forward passes."""
    policy.passes.capabilities  # noqa: B018  # found before it is counted
    sizes = []
    handle = policy.model.get_input_embeddings().register_forward_hook(lambda m, args, _: sizes.append(args[0].shape))
    rollout = generate(policy, **settings)
    handle.remove()
    return sizes, rollout


def test_a_prompt_is_read_once_for_its_group_and_finished_rows_no_more(tiny_tokenizer):
    sizes, rollout = rows_fed(tiny("llama", tiny_tokenizer), decoder=GroupDecoder(0.0))

    lengths = rollout.grouped(rollout.lengths)
    # A group keeps as many rows as the one with the most unfinished ones, as long as it has any.
    expected = [(4, 10)]
    for t in range(1, int(lengths.max())):
        under_way = (lengths > t).sum(dim=1)
        expected.append((int((under_way > 0).sum() * under_way.max()), 1))
    assert [tuple(size) for size in sizes] == expected


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_rows_are_dropped_once_that_spares_more_than_the_share(share, tiny_tokenizer):
    sizes, rollout = rows_fed(tiny("llama", tiny_tokenizer), decoder=GroupDecoder(share))

    rows = [16, *(size[0] for size in sizes[1:])]
    lengths = rollout.grouped(rollout.lengths)
    for t, (before, after) in enumerate(pairwise(rows), start=1):
        under_way = (lengths > t).sum(dim=1)
        needed = int((under_way > 0).sum() * under_way.max())
        assert after == (needed if needed < (1 - share) * before else before)
    assert rows[-1] < 16


@every_decoder
def test_nothing_is_computed_behind_the_longest_completion(decoder, tiny_tokenizer):
    sizes, rollout = rows_fed(tiny("llama", tiny_tokenizer), decoder=decoder, numbers=[1, 2], max_completion_length=60)

    assert len(sizes) == int(rollout.lengths.max()) < 45


@every_decoder
class TestEnds:
    def test_every_row_may_end_at_its_first_token(self, decoder, tiny_tokenizer):
        firsts = generate(tiny("llama", tiny_tokenizer, ends=[0]), decoder).completion_ids[:, 0]
        policy = tiny("llama", tiny_tokenizer, ends=firsts.unique().tolist())

        rollout = generate(policy, decoder)

        assert rollout.completion_ids.tolist() == firsts[:, None].tolist()
        assert rollout.completion_mask.all() and not rollout.truncated.any()

    def test_no_row_need_end(self, decoder, tiny_tokenizer):
        calm = tiny_tokenizer("calm")["input_ids"]

        rollout = generate(tiny("llama", tiny_tokenizer, ends=calm), decoder, max_completion_length=8)

        assert rollout.completion_ids.shape == (16, 8)
        assert rollout.completion_mask.all() and rollout.truncated.all()

    def test_a_row_that_ends_at_once_stops_none_of_the_others(self, decoder, tiny_tokenizer):
        endless = completions(generate(tiny("llama", tiny_tokenizer, ends=[0]), decoder))
        first = endless[(50, 0)][0][0]
        policy = tiny("llama", tiny_tokenizer, ends=[0, first])

        found = completions(generate(policy, decoder))

        assert found[(50, 0)][0] == [first] and not found[(50, 0)][2]
        for place, (tokens, _, cut) in found.items():
            free = endless[place][0]
            expected = free[: free.index(first) + 1] if first in free else free
            assert (tokens, cut) == (expected, expected[-1] not in (0, first))
        assert max(len(tokens) for tokens, *_ in found.values()) == LENGTH

    def test_each_of_several_end_tokens_ends_a_completion(self, decoder, tiny_tokenizer):
        rollout = generate(tiny("llama", tiny_tokenizer), decoder, group_size=16)

        last = [int(ids[kept][-1]) for ids, kept in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]
        ended = [token for token, cut in zip(last, rollout.truncated, strict=True) if not cut]
        assert len(set(ended)) >= 3 and set(ended) <= set(ENDS)

    def test_one_token_is_a_completion(self, decoder, tiny_tokenizer):
        policy = tiny("llama", tiny_tokenizer)
        long = completions(generate(policy, decoder))

        short = completions(generate(policy, decoder, max_completion_length=1))

        assert all(short[place][0] == long[place][0][:1] for place in long)
        assert all(cut == (tokens[0] not in ENDS) for tokens, _, cut in short.values())


@given(hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))).filter(np.any))
def test_a_rectangle_stays_with_every_unfinished_completion_and_no_group_without_any(unfinished):
    groups, members = still_needed(torch.from_numpy(unfinished))

    kept = [(group, member) for group, row in zip(groups.tolist(), members.tolist(), strict=True) for member in row]
    assert members.shape == (len(groups), unfinished.sum(axis=1).max())
    assert len(set(kept)) == len(kept)
    assert groups.tolist() == [group for group, row in enumerate(unfinished) if row.any()]
    assert set(zip(*(places.tolist() for places in np.nonzero(unfinished)), strict=True)) <= set(kept)
    for group, row in zip(groups.tolist(), members.tolist(), strict=True):
        under_way = unfinished[group, row].tolist()
        assert under_way == sorted(under_way, reverse=True)


SETTINGS = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.15},
    "penalty": {"repetition_penalty": 1.8},
    "reward": {"repetition_penalty": 0.6, "temperature": 1.5},
    "all": {"temperature": 1.4, "top_k": 12, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.5},
}


def distribution_of_transformers(model, tokens, settings):
    """What `generate(do_sample=True)` would draw the token after these from, [V] float64; no padding anywhere."""
    config = GenerationConfig(
        **{"top_k": 0} | settings,
        do_sample=True,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    ids = torch.tensor([tokens])
    with torch.random.fork_rng():
        scores = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config).scores[0][0]
    return scores.double().softmax(-1).numpy()


def drawn(probabilities, u):
    """The first token at which the sum of the probabilities exceeds u."""
    total = 0.0
    for token, p in enumerate(probabilities):
        total += p
        if total > u:
            return token
    raise AssertionError("probabilities sum to less than 1")


@every_decoder
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_each_token_is_drawn_from_the_distribution_that_transformers_would_sample_from(
    settings, decoder, tiny_tokenizer
):
    policy = tiny("llama", tiny_tokenizer)

    rollout = generate(policy, decoder, numbers=(0, 1), group_size=3, **settings)

    uniforms = sampling_uniforms(SEED, STEP, rollout.prompts.indices, 3, LENGTH).numpy()
    for row, (ids, kept) in enumerate(zip(rollout.completion_ids, rollout.completion_mask, strict=True)):
        tokens = rollout.prompt_ids[row // 3][rollout.prompt_mask[row // 3]].tolist()
        for t, token in enumerate(ids[kept].tolist()):
            probabilities = distribution_of_transformers(policy.model, tokens, settings)
            assert token == drawn(probabilities / probabilities.sum(), uniforms[row, t]), (row, t)
            tokens.append(token)
    assert_logprobs_are_those_of_full_passes(policy, rollout, settings.get("temperature", 1.0))


@every_decoder
@pytest.mark.parametrize("pad", [33, 31], ids=["an end token", "a word"])
def test_padding_does_not_count_as_a_repeated_token(pad, decoder, tiny_tokenizer):
    policy = tiny("llama", tiny_tokenizer)
    policy.pad_token_id = pad
    settings = {"group_size": 8, "repetition_penalty": 4.0, "temperature": 1.5}

    whole = completions(generate(policy, decoder, numbers=(0, 1, 2), **settings))

    # "sad" stands behind nine padding tokens here and behind none below; as repeated ones they would be rare.
    assert sum(pad in tokens for (number, _), (tokens, *_) in whole.items() if number == 51) >= 3
    for number in (0, 1, 2):
        assert_same(completions(generate(policy, decoder, numbers=[number], **settings)), whole)


def test_a_token_that_only_a_penalty_lets_through_has_a_finite_logprob(tiny_tokenizer):
    policy = tiny("llama", tiny_tokenizer)

    rollout = generate(policy, temperature=0.001, repetition_penalty=5.0)

    assert float(rollout.old_logprobs.min()) < -800  # exp of this is 0 even in float64
    assert torch.isfinite(rollout.old_logprobs).all()


def test_a_length_from_which_positions_are_turned_otherwise_is_the_models_limit(tiny_tokenizer):
    policy = tiny("phi3", tiny_tokenizer)

    rollout = generate(policy, max_completion_length=6)  # 10 + 6 tokens at most

    assert_logprobs_are_those_of_full_passes(policy, rollout, 1.0)
    with pytest.raises(UserError, match=r"got 10 tokens and 7 for the completion, .* has 16 positions"):
        generate(policy, max_completion_length=7)


NO_MATTER = {
    "forced_bos_token_id": 7,
    "temperature": 0.3,
    "do_sample": True,
    "top_k": 2,
    "top_p": 0.3,
    "min_p": 0.5,
    "typical_p": 0.2,
    "max_new_tokens": 3,
    "max_length": 5,
    "return_dict_in_generate": True,
    "output_scores": True,
    "use_cache": False,
}
FOREIGN = {
    "repetition_penalty": 1.7,
    "min_new_tokens": 8,
    "min_length": 14,
    "forced_eos_token_id": 9,
    "suppress_tokens": [6, 7, 8, 9, 10, 12, 13],
    "begin_suppress_tokens": [6, 7, 8, 9, 10, 12, 13],
    "bad_words_ids": [[7], [8], [9], [10], [12]],
    "no_repeat_ngram_size": 1,
    "guidance_scale": 2.0,
    "sequence_bias": [[[9], 5.0]],
    "exponential_decay_length_penalty": (1, 3.0),
    "max_time": 1e-9,
    "num_beams": 3,
    "num_return_sequences": 2,
    "stop_strings": ["the"],
    "prompt_lookup_num_tokens": 3,
}


def check_that_it_does_not_matter(name, value, family, tokenizer):
    policy = tiny(family, tokenizer)
    expected = generate(policy, PlainDecoder())
    policy.model.generation_config = copy.deepcopy(policy.model.generation_config)
    setattr(policy.model.generation_config, name, value)

    found = generate(policy, PlainDecoder())

    assert torch.equal(found.completion_ids, expected.completion_ids)
    torch.testing.assert_close(found.old_logprobs, expected.old_logprobs, atol=1e-6, rtol=0)
    assert getattr(policy.model.generation_config, name) == value


@pytest.mark.parametrize("name", NO_MATTER)
def test_how_a_checkpoint_likes_to_be_sampled_changes_no_completion(name, tiny_tokenizer):
    check_that_it_does_not_matter(name, NO_MATTER[name], "llama", tiny_tokenizer)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_checkpoint_does_to_logits_and_stopping_changes_no_completion(name, tiny_tokenizer):
    check_that_it_does_not_matter(name, FOREIGN[name], "llama", tiny_tokenizer)


def test_a_generation_config_leaves_a_recurrent_model_alone_too(tiny_tokenizer):
    check_that_it_does_not_matter("repetition_penalty", 1.7, "mamba", tiny_tokenizer)
