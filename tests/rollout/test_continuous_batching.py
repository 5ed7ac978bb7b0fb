import gc
import threading

import pytest
import torch
import transformers
from models.tiny_models import language_model, row_by_row_logprobs
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LoRA
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.rollout.continuous import ContinuousBatchingDecoder
from grpovi_lightning.rollout.decoding import GroupDecoder, PlainDecoder
from grpovi_lightning.rollout.sampler import Sampler
from grpovi_lightning.structures import PromptBatch

# The longest is longer than the windows of the models that have one; the shortest is one token.
TEXTS = ["write about the red fox and the boat , happy", "sad", "the old house", "a blue boat finds the fox"]
ENDS = [1, 5, 11, 20, 33]
SMALL = {"page_size": 4, "rows_at_once": 16}
FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox", "cohere", "mistral", "gemma3_text", "mixtral", "qwen2_moe"]


def tiny(family, tokenizer, ends=ENDS, **settings):
    policy = language_model(family, tokenizer, **settings)
    policy.end_token_ids = ends
    return policy


def generate(policy, decoder, numbers=(0, 1, 2, 3), group_size=4, **sampling):
    engine = RolloutEngine(SamplingConfig(**{"max_completion_length": 16} | sampling), decoder)
    prompts = PromptBatch([TEXTS[i] for i in numbers], torch.tensor([50 + i for i in numbers]), {})
    return engine.generate(policy, prompts, group_size, seed=3, step=2)


def assert_same(found, expected):
    assert found.completion_ids.tolist() == expected.completion_ids.tolist()
    assert found.completion_mask.tolist() == expected.completion_mask.tolist()
    assert found.truncated.tolist() == expected.truncated.tolist()
    torch.testing.assert_close(found.old_logprobs, expected.old_logprobs, atol=1e-5, rtol=0)


def completions(rollout):
    """(number of the prompt, member) -> tokens."""
    places = [(int(n), member) for n in rollout.prompts.indices for member in range(rollout.group_size)]
    rows = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
    return {place: ids[kept].tolist() for place, (ids, kept) in zip(places, rows, strict=True)}


def tokens_read(policy, decoder):
    """How many tokens the model reads in all passes of a rollout, and the rollout."""
    sizes = []
    handle = policy.model.get_input_embeddings().register_forward_hook(lambda m, args, _: sizes.append(args[0].numel()))
    rollout = generate(policy, decoder)
    handle.remove()
    return sum(sizes), rollout


def read_at_least(rollout):
    """A completion reads the last token of its prompt and its own but the last; prompts are read up to there."""
    return int((rollout.prompt_mask.sum(dim=1) - 1).sum() + rollout.lengths.sum())


@pytest.fixture
def draws(monkeypatch):
    """Every (row, t) that is drawn, in order."""
    seen, draw = [], Sampler.draw

    def noted(self, logits, rows, t):
        assert len(logits) == len(rows)
        seen.extend((row, t) for row in rows.tolist())
        return draw(self, logits, rows, t)

    monkeypatch.setattr(Sampler, "draw", noted)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_it_draws_what_transformers_generation_draws(family, tiny_tokenizer):
    policy = tiny(family, tiny_tokenizer)

    found = generate(policy, ContinuousBatchingDecoder(**SMALL), temperature=0.8)

    assert_same(found, generate(policy, PlainDecoder(), temperature=0.8))
    assert len(set(found.lengths.tolist())) >= 4


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_draws_what_decoding_by_groups_draws(family, tiny_tokenizer):
    policy = tiny(family, tiny_tokenizer)
    settings = {"temperature": 1.4, "top_k": 12, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.5}

    for sampling in ({}, settings):
        assert_same(
            generate(policy, ContinuousBatchingDecoder(), **sampling), generate(policy, GroupDecoder(), **sampling)
        )


SIZES = {
    "one row at once": {"rows_at_once": 1},
    "three rows at once": {"rows_at_once": 3},
    "prompts in parts of one token": {"tokens_at_once": 1},
    "prompts in parts of five tokens": {"tokens_at_once": 5},
    "no full page": {"page_size": 64},
    "pages that flash attention reads": {"page_size": 256},
    "room for one completion": {"cache_tokens": 28},
    "room for a few completions": {"cache_tokens": 60},
    "room for half": {"cache_tokens": 160},
    "hardly any room, few rows, short parts": {"cache_tokens": 44, "rows_at_once": 5, "tokens_at_once": 7},
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_sizes_change_nothing(family, sizes, tiny_tokenizer):
    policy = tiny(family, tiny_tokenizer)

    found = generate(policy, ContinuousBatchingDecoder(**SMALL | sizes))

    assert_same(found, generate(policy, PlainDecoder()))


def test_a_short_cache_makes_completions_give_way_and_each_token_is_still_drawn_once(draws, tiny_tokenizer):
    policy = tiny("llama", tiny_tokenizer)
    decoder = ContinuousBatchingDecoder(page_size=4, cache_tokens=44)
    generate(policy, decoder)  # the first call is checked by further passes
    draws.clear()

    read, rollout = tokens_read(policy, decoder)

    assert sorted(draws) == [(row, t) for row, length in enumerate(rollout.lengths.tolist()) for t in range(length)]
    assert read > read_at_least(rollout) + 16


def test_a_completion_depends_on_no_other(tiny_tokenizer):
    policy, decoder = tiny("llama", tiny_tokenizer), ContinuousBatchingDecoder(**SMALL)
    whole = completions(generate(policy, decoder))

    for change in ({"numbers": [3, 1, 0, 2]}, {"numbers": [2]}, {"numbers": [1]}, {"group_size": 1}, {"group_size": 7}):
        found = completions(generate(policy, decoder, **change))
        shared = found.keys() & whole.keys()
        assert len(shared) == min(len(found), len(whole), 4 * len(change.get("numbers", TEXTS)))
        assert all(found[place] == whole[place] for place in shared)


@pytest.mark.parametrize("numbers", [[1], [1, 1], [0], [0, 0], [0, 1, 2, 3]])
@pytest.mark.parametrize("group_size", [1, 3])
def test_prompts_of_any_length_go(numbers, group_size, tiny_tokenizer):
    policy = tiny("llama", tiny_tokenizer)

    for length in (1, 2, 16):
        settings = {"numbers": numbers, "group_size": group_size, "max_completion_length": length}
        found = generate(policy, ContinuousBatchingDecoder(**SMALL), **settings)
        assert_same(found, generate(policy, PlainDecoder(), **settings))


def test_each_token_is_drawn_once_and_none_behind_an_end(draws, tiny_tokenizer):
    rollout = generate(tiny("llama", tiny_tokenizer), ContinuousBatchingDecoder(**SMALL))

    assert len({int(n) for n in rollout.lengths}) >= 4 and rollout.truncated.any()
    assert sorted(draws) == [(row, t) for row, length in enumerate(rollout.lengths.tolist()) for t in range(length)]


def test_rows_that_end_at_their_first_token_end(tiny_tokenizer):
    firsts = generate(tiny("llama", tiny_tokenizer, ends=[0]), PlainDecoder()).completion_ids[:, 0]
    policy = tiny("llama", tiny_tokenizer, ends=firsts.unique().tolist())

    rollout = generate(policy, ContinuousBatchingDecoder(**SMALL))

    assert rollout.completion_ids.tolist() == firsts[:, None].tolist()
    assert not rollout.truncated.any()


def test_a_prompt_is_read_once_but_for_its_last_token(tiny_tokenizer):
    policy, decoder = tiny("llama", tiny_tokenizer), ContinuousBatchingDecoder(**SMALL)
    generate(policy, decoder)

    read, rollout = tokens_read(policy, decoder)

    assert read == read_at_least(rollout)


def test_a_group_shares_the_pages_of_its_prompt(monkeypatch, tiny_tokenizer):
    forks, fork = [], PagedAttentionCache.prepare_fork_request

    def noted(self, state, names, copies):
        forked = fork(self, state, names, copies)
        tables = next(iter(self.cache_allocators.values())).block_table
        forks.append([list(tables[name]) for name in [state.request_id, *forked]])
        return forked

    monkeypatch.setattr(PagedAttentionCache, "prepare_fork_request", noted)
    generate(tiny("llama", tiny_tokenizer), ContinuousBatchingDecoder(**SMALL), numbers=[0])

    (tables,) = forks
    assert len(tables) == 4
    # Nine tokens are read before the fork: two full pages; a third one is its own.
    assert all(table[:2] == tables[0][:2] for table in tables)
    assert len({page for table in tables for page in table[2:]}) == sum(len(table) - 2 for table in tables)


def test_nothing_of_an_earlier_rollout_is_used_after_the_weights_have_changed(tiny_tokenizer):
    policy, decoder = tiny("llama", tiny_tokenizer), ContinuousBatchingDecoder(**SMALL)
    before = generate(policy, decoder)
    with torch.no_grad():
        for weights in policy.model.parameters():
            weights.mul_(1.3)

    after = generate(policy, decoder)

    assert_same(after, generate(policy, ContinuousBatchingDecoder(**SMALL)))
    assert_same(after, generate(policy, PlainDecoder()))
    assert after.completion_ids.tolist() != before.completion_ids.tolist()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_leaves_everything_as_it_was(checkpointing, tiny_tokenizer):
    policy = tiny("llama", tiny_tokenizer)
    if checkpointing:
        policy.model.gradient_checkpointing_enable()
    policy = type(policy)(policy.model, tiny_tokenizer)
    policy.end_token_ids = ENDS
    policy.capabilities  # noqa: B018  # found before modes are mixed
    expected = generate(policy, PlainDecoder())
    policy.model.train()
    policy.model.get_input_embeddings().eval()
    modes = [module.training for module in policy.model.modules()]
    torch.rand(7)  # away from where any seed starts
    state, attention = torch.get_rng_state(), policy.model.config._attn_implementation
    config, threads = policy.model.generation_config.to_dict(), threading.active_count()

    found = generate(policy, ContinuousBatchingDecoder(**SMALL))

    assert_same(found, expected)
    assert [module.training for module in policy.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.model.config._attn_implementation == attention
    assert policy.model.generation_config.to_dict() == config
    assert threading.active_count() == threads
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is PagedAttentionCache]
    # The model still trains.
    policy.completion_statistics(found, 1.0).logprobs.sum().backward()
    assert all(weights.grad is not None for weights in policy.model.parameters())


def test_modes_are_restored_where_decoding_fails(monkeypatch, tiny_tokenizer):
    policy = tiny("llama", tiny_tokenizer)
    policy.capabilities  # noqa: B018
    policy.model.train()
    monkeypatch.setattr(Sampler, "draw", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        generate(policy, ContinuousBatchingDecoder(**SMALL))

    assert all(module.training for module in policy.model.modules())


def test_adapters_count(tiny_tokenizer):
    pytest.importorskip("peft")
    policy = tiny("llama", tiny_tokenizer)
    without = generate(policy, PlainDecoder())
    LoRA(r=4).add_to(policy.model)
    generator = torch.Generator().manual_seed(1)
    for name, weights in policy.model.named_parameters():
        if "lora_B" in name:
            weights.data.copy_(0.05 * torch.randn(weights.shape, generator=generator))
    policy = type(policy)(policy.model, tiny_tokenizer)
    policy.end_token_ids = ENDS

    found = generate(policy, ContinuousBatchingDecoder(**SMALL))

    assert_same(found, generate(policy, PlainDecoder()))
    assert found.completion_ids.tolist() != without.completion_ids.tolist()


def test_half_precision_goes(tiny_tokenizer):
    policy = tiny("llama", tiny_tokenizer)
    policy.model.to(torch.bfloat16)

    rollout = generate(policy, ContinuousBatchingDecoder(**SMALL))

    with torch.no_grad():
        expected = torch.cat(row_by_row_logprobs(policy.model, rollout))
    errors = rollout.old_logprobs[rollout.completion_mask].double() - expected
    assert errors.abs().mean() < 0.05 and errors.abs().max() > 1e-4  # it was not computed in another precision


class TestWhatItDoesNotTake:
    @pytest.mark.parametrize("family", ["gemma2", "bloom", "mamba", "deepseek_v3", "gpt_oss"])
    def test_a_model_that_would_be_computed_wrongly(self, family, tiny_tokenizer):
        with pytest.raises(UserError, match=r"^continuous batching: got .*; take another decoder$"):
            generate(tiny(family, tiny_tokenizer), ContinuousBatchingDecoder())

    def test_mixed_precision(self, tiny_tokenizer):
        policy = tiny("llama", tiny_tokenizer)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match="got mixed precision"):
            generate(policy, ContinuousBatchingDecoder())

    def test_sharded_weights(self, monkeypatch, tiny_tokenizer):
        policy = tiny("llama", tiny_tokenizer)
        monkeypatch.setattr(type(policy), "is_sharded", True)
        with pytest.raises(UserError, match="got sharded weights"):
            generate(policy, ContinuousBatchingDecoder())

    def test_a_cache_in_which_one_completion_has_no_room(self, tiny_tokenizer):
        policy = tiny("llama", tiny_tokenizer)
        # Ten tokens of a prompt and sixteen of a completion are seven pages of four.
        with pytest.raises(UserError, match=r"^cache_tokens: got 27, expected room for .* 26 tokens in pages of 4"):
            generate(policy, ContinuousBatchingDecoder(page_size=4, cache_tokens=27))

    def test_a_cache_that_does_not_fit(self, tiny_tokenizer):
        policy = tiny("llama", tiny_tokenizer)
        with pytest.raises(UserError, match=r"does not fit: .*; set cache_tokens below 16000000000$"):
            generate(policy, ContinuousBatchingDecoder(page_size=1_000_000_000))

    @pytest.mark.parametrize("sizes", [{"rows_at_once": 0}, {"page_size": 3}, {"tokens_at_once": 0}])
    def test_sizes_that_are_too_small(self, sizes):
        with pytest.raises(UserError, match=rf"^{next(iter(sizes))}: got \d, expected at least \d$"):
            ContinuousBatchingDecoder(**sizes)

    def test_a_library_that_is_too_old(self, monkeypatch):
        monkeypatch.setattr(transformers, "__version__", "5.4.0")
        with pytest.raises(UserError, match=r"got transformers 5.4.0, expected 5.23 or newer"):
            ContinuousBatchingDecoder()

    def test_numbers_that_a_plain_pass_does_not_confirm(self, monkeypatch, tiny_tokenizer):
        update = PagedAttentionCache.update

        def forgetful(self, **arguments):
            keys, values = update(self, **arguments)
            return keys, values * 0.98

        policy, decoder = tiny("llama", tiny_tokenizer), ContinuousBatchingDecoder()
        with monkeypatch.context() as patch:
            patch.setattr(PagedAttentionCache, "update", forgetful)
            for _ in range(2):
                with pytest.raises(UserError, match=r"log-probabilities that differ by .*; take another decoder$"):
                    generate(policy, decoder)
        generate(policy, decoder)
