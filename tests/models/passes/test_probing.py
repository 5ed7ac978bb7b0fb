import inspect
import logging

import pytest
import torch
import transformers
from models.tiny_models import language_model, rollout, row_by_row_logprobs, set_capabilities
from packaging.version import Version
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.passes import FusedHead, SeparateHead, group_cache, probing
from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.structures import PromptBatch

DATA = rollout([6, 14, 2], [[5, 1, 16], [2, 16, 3], [4, 16, 1]])
TEXTS = ["write about the red fox and the boat , happy", "the old house", "sad"]
# family -> whether prompts are run once for their groups, and whether their attention is computed by groups.
WAYS = {
    "cohere": (True, True),
    "granite": (True, True),
    "mixtral": (True, True),
    "bloom": (True, False),  # position biases, no attention interface
    "falcon": (True, False),  # no attention interface
    "gptj": (True, Version(transformers.__version__) >= Version("5.24")),  # no attention interface before
    "gpt_oss": (True, False),  # attention sinks
    "deepseek_v3": (True, False),  # keys are cached compressed
    "lfm2": (False, False),  # convolutions
    "mamba": (False, False),
    "jamba": (False, False),
    "qwen3_next": (False, False),
}


@pytest.fixture(autouse=True)
def said(monkeypatch):
    """Nothing was logged yet."""
    monkeypatch.setattr(probing, "_said", set())


def sampled(policy):
    policy.end_token_ids = [1, 5, 11, 20, 33]
    engine = RolloutEngine(SamplingConfig(max_completion_length=18, temperature=1.3, top_k=30))
    return engine.generate(policy, PromptBatch(TEXTS, torch.arange(3), {}), 4, seed=1, step=0)


def largest_error(found, mask, expected):
    return max(float((row[kept] - right).abs().max()) for row, kept, right in zip(found, mask, expected, strict=True))


@torch.no_grad()
def error_of_training(policy, data=DATA):
    """Against unpadded passes over single completions, through nothing but the model itself."""
    found = policy.completion_statistics(data, 0.7).logprobs
    return largest_error(found, data.completion_mask, row_by_row_logprobs(policy.model, data, 0.7))


@torch.no_grad()
def error_of_sampling(policy):
    data = sampled(policy)
    assert len(set(data.lengths.tolist())) >= 3
    return largest_error(data.old_logprobs, data.completion_mask, row_by_row_logprobs(policy.model, data, 1.3))


@pytest.mark.parametrize("family", WAYS)
def test_whichever_way_a_model_takes_its_logprobs_are_those_of_single_unpadded_passes(family, tiny_tokenizer):
    policy = language_model(family, tiny_tokenizer)

    found = policy.passes.capabilities

    assert (found.shares_prefix, found.decodes_by_groups) == WAYS[family]
    assert isinstance(found.parts, SeparateHead)
    assert error_of_training(policy) < 1e-4
    assert error_of_sampling(policy) < 1e-4


@pytest.mark.parametrize("family", ["phimoe", "qwen2_moe"])
def test_a_window_that_only_the_mask_knows_of_is_not_lost_while_decoding(family, tiny_tokenizer):
    policy = language_model(family, tiny_tokenizer)

    assert error_of_training(policy) < 1e-4
    assert error_of_sampling(policy) < 1e-4


@pytest.mark.parametrize("family", ["rwkv", "recurrent_gemma", "bart"])
def test_a_model_that_left_padding_disturbs_is_refused_rather_than_wrong(family, tiny_tokenizer):
    policy = language_model(family, tiny_tokenizer)

    for _ in range(2):  # nor does the second question get another answer
        with pytest.raises(UserError, match="padd"):
            _ = policy.passes.capabilities


class TestReport:
    def test_a_recurrent_model_is_said_once_to_take_the_plain_path(self, tiny_tokenizer, caplog):
        with caplog.at_level(logging.WARNING, logger="grpovi_lightning"):
            for seed in (1, 2):
                policy = language_model("mamba", tiny_tokenizer, seed)
                sampled(policy)
                policy.completion_statistics(DATA, 1.0)

        ours = [record.getMessage() for record in caplog.records if record.name.startswith("grpovi_lightning")]
        assert len(ours) == 1
        assert "MambaForCausalLM takes a plain, slower path: its cache does not keep the keys" in ours[0]

    def test_another_class_or_another_reason_is_said_too(self, tiny_tokenizer, caplog):
        with caplog.at_level(logging.WARNING, logger="grpovi_lightning"):
            for family in ("bloom", "falcon", "gpt_oss", "bloom"):
                _ = language_model(family, tiny_tokenizer).passes.capabilities

        ours = [record.getMessage() for record in caplog.records if record.name.startswith("grpovi_lightning")]
        assert [text.split()[0] for text in ours] == ["BloomForCausalLM", "FalconForCausalLM", "GptOssForCausalLM"]
        assert "attention interface" in ours[0] and "s_aux" in ours[2]

    @pytest.mark.filterwarnings("error::FutureWarning")
    def test_a_model_that_can_everything_says_nothing(self, tiny_tokenizer, caplog):
        with caplog.at_level(logging.DEBUG, logger="grpovi_lightning"):
            _ = language_model("llama", tiny_tokenizer).passes.capabilities

        assert not [record for record in caplog.records if record.name.startswith("grpovi_lightning")]


def state(model):
    """Everything that a trial touches, and must leave as it was."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "attention": model.config._attn_implementation,
        "cache": group_cache._active.cache,
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("training", [True, False])
def test_trying_out_leaves_the_model_as_it_is(training, tiny_tokenizer):
    policy = language_model("gpt2", tiny_tokenizer, resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3)
    policy.model.train(training)
    policy.model.get_input_embeddings().train(not training)  # a part in another mode than the rest
    weights = {name: value.clone() for name, value in policy.model.state_dict().items()}
    torch.manual_seed(1)
    before = state(policy.model)

    found = policy.passes.capabilities

    assert found.shares_prefix and found.decodes_by_groups  # dropout would have made them disagree
    assert policy.passes.capabilities is found
    assert state(policy.model) == before
    assert all(torch.equal(value, weights[name]) for name, value in policy.model.state_dict().items())


# Passes of a trial: 1 and 2 are those of the output head, 3 to 11 plain ones, 12 and 13 shared, 14 to 16 by groups.
ENDINGS = [
    *((KeyboardInterrupt(), at) for at in (1, 3, 12, 14, 16)),
    (SystemExit(1), 11),
    (MemoryError(), 2),
    (torch.OutOfMemoryError("CUDA out of memory."), 13),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), 15),
]


def cut_short(policy, at, ending):
    """Tries the model out, with an error in the middle of that many-th forward pass."""
    count = iter(range(1, 1000))

    def hook(*_):
        if next(count) == at:
            raise ending

    handle = policy.model.model.layers[1].self_attn.register_forward_hook(hook)
    try:
        return policy.passes.capabilities
    finally:
        handle.remove()


@pytest.mark.parametrize(("ending", "at"), ENDINGS)
def test_a_trial_that_is_cut_short_leaves_nothing_behind(ending, at, tiny_tokenizer, caplog):
    """Neither a plain path that nobody asked for, nor hooks, modes, another attention, or half of what was found."""
    policy = language_model("llama", tiny_tokenizer)
    policy.model.train()
    policy.model.lm_head.eval()
    before = state(policy.model)

    with pytest.raises(type(ending)) as raised:
        cut_short(policy, at, ending)

    assert raised.value is ending
    assert state(policy.model) == before
    assert policy._passes is None
    assert not caplog.records
    found = cut_short(policy, 17, ending)  # there is no such pass
    assert found.shares_prefix and found.decodes_by_groups and isinstance(found.parts, SeparateHead)


def test_a_model_that_was_refused_is_left_as_it_was(tiny_tokenizer):
    policy = language_model("bart", tiny_tokenizer)
    policy.model.train()
    before = state(policy.model)

    with pytest.raises(UserError, match="padd"):
        _ = policy.passes.capabilities

    assert state(policy.model) == before and policy._passes is None


def test_a_head_that_cannot_be_run_apart_is_said_with_the_reason(tiny_tokenizer, caplog):
    policy = language_model("llama", tiny_tokenizer)
    hooks = state(policy.model)["hooks"]
    with caplog.at_level(logging.WARNING, logger="grpovi_lightning"):
        assert isinstance(language_model("rembert", tiny_tokenizer).passes.capabilities.parts, FusedHead)
        assert isinstance(with_head(policy, scaled, 8.0).passes.capabilities.parts, FusedHead)

    assert "RemBertForCausalLM takes a plain, slower path: its output head apart from its body failed" in caplog.text
    assert "LlamaForCausalLM takes a plain, slower path: its output head apart from its body gives" in caplog.text
    assert state(policy.model)["hooks"] == hooks


# What a wrong model might do. Each disturbs one of the two layers, and only on the way that it lies about.
# An attention takes its cache as `cache`; before `transformers` 5.24 as `past_key_values`.
CACHE = "cache" if "cache" in inspect.signature(LlamaAttention.forward).parameters else "past_key_values"


def forgetful(forward):
    """Several tokens at once do not see what was cached before them; one token at a time does."""

    def attend(hidden_states, *args, attention_mask=None, **kwargs):
        several = hidden_states.shape[1]
        if kwargs[CACHE] is not None and several > 1 and kwargs[CACHE].get_seq_length(1) > 0:
            kwargs[CACHE] = None
            attention_mask = None if attention_mask is None else attention_mask[..., -several:]
        return forward(hidden_states, *args, attention_mask=attention_mask, **kwargs)

    return attend


def loud(forward):
    """By groups, the attention counts more than it should."""

    def attend(*args, **kwargs):
        output, weights = forward(*args, **kwargs)
        return (1.2 * output if isinstance(kwargs[CACHE], group_cache.GroupCache) else output), weights

    return attend


def broken(forward):
    """By groups, nothing works."""

    def attend(*args, **kwargs):
        if isinstance(kwargs[CACHE], group_cache.GroupCache):
            raise KeyError("no such layer")
        return forward(*args, **kwargs)

    return attend


@pytest.mark.parametrize(
    ("lie", "shares", "reason"),
    [
        (forgetful, False, "shared-prefix forward pass gives logits that differ"),
        (loud, True, "decoding by groups gives logits that differ"),
        (broken, True, "decoding by groups failed (KeyError: 'no such layer')"),
    ],
)
def test_a_model_whose_cache_lies_is_recognised_and_takes_the_way_that_is_right(
    lie, shares, reason, tiny_tokenizer, caplog
):
    policy = language_model("llama", tiny_tokenizer)
    attention = policy.model.model.layers[1].self_attn
    attention.forward = lie(attention.forward)

    with caplog.at_level(logging.WARNING, logger="grpovi_lightning"):
        found = policy.passes.capabilities

    assert (found.shares_prefix, found.decodes_by_groups) == (shares, False)
    assert policy.runs_prompts_once == shares
    assert reason in caplog.text
    assert error_of_training(policy) < 1e-4
    assert error_of_sampling(policy) < 1e-4


# Heads that a configuration does not tell of.


def scaled(logits):
    return 1.5 * logits


def capped(logits):
    return 30 * torch.tanh(logits / 30)


def with_head(policy, change, spread):
    """Changes what the model does to its logits, whose standard deviation is set before that."""
    model = policy.model
    with torch.no_grad():
        model.lm_head.weight.mul_(spread / model(torch.arange(12)[None]).logits.float().std())
    plain = LlamaForCausalLM.forward

    def forward(*args, **kwargs):
        output = plain(model, *args, **kwargs)
        output.logits = change(output.logits)
        return output

    forward.__signature__ = inspect.signature(model.forward)
    model.forward = forward
    return policy


@pytest.mark.parametrize(
    ("change", "spread", "dtype"),
    [
        (scaled, 0.3, torch.float32),
        (scaled, 8.0, torch.float32),
        (scaled, 8.0, torch.bfloat16),
        (capped, 8.0, torch.float32),
        (capped, 0.3, torch.float32),
        (capped, 0.3, torch.bfloat16),
        (capped, 8.0, torch.bfloat16),
    ],
)
def test_a_head_that_is_more_than_its_configuration_tells_is_not_run_apart(change, spread, dtype, tiny_tokenizer):
    policy = with_head(language_model("llama", tiny_tokenizer), change, spread)
    policy.model.to(dtype)

    assert isinstance(policy.passes.capabilities.parts, FusedHead)
    if dtype == torch.float32:
        assert policy.passes.capabilities.shares_prefix and policy.passes.capabilities.decodes_by_groups
        assert error_of_training(policy) < 1e-4
        assert error_of_sampling(policy) < 1e-4


@pytest.mark.parametrize("family", ["cohere", "granite", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_and_caps_that_configurations_name_belong_to_the_separate_head(family, dtype, tiny_tokenizer):
    settings = {"final_logit_softcapping": 2.0} if family.startswith("gemma") else {}
    policy = language_model(family, tiny_tokenizer, **settings)
    policy.model.to(dtype)
    ids = torch.arange(3, 15)[None]

    parts = policy.passes.capabilities.parts

    assert isinstance(parts, SeparateHead)
    with torch.no_grad():
        logits = parts.logits(parts.states(12, input_ids=ids, use_cache=False))
        assert torch.equal(logits, policy.model(ids).logits)
        bare = parts.output(parts.states(12, input_ids=ids, use_cache=False))
    assert not torch.allclose(logits, bare, rtol=0.05)


def test_a_model_with_a_layer_between_body_and_output_embedding_has_a_fused_head(tiny_tokenizer):
    policy = language_model("rembert", tiny_tokenizer)

    assert isinstance(policy.passes.capabilities.parts, FusedHead)
    assert error_of_training(policy) < 1e-4
    assert error_of_sampling(policy) < 1e-4


def test_a_model_with_a_fused_head_trains_as_one_with_a_separate_head(tiny_tokenizer):
    gradients = []
    for fused in (False, True):
        policy = language_model("llama", tiny_tokenizer)
        if fused:
            set_capabilities(policy, parts=FusedHead(policy.model))
        policy.completion_statistics(DATA, 1.0).logprobs.sum().backward()
        gradients.append(nn.utils.parameters_to_vector([p.grad for p in policy.parameters()]))

    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
