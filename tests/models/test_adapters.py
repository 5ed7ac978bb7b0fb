"""Adapters with peft's options: what the policy computes, what its reference computes, and what is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import language_model, rollout
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LanguageModel, LoRA, PretrainedCausalLM, SharedReference

IDS = torch.arange(3, 21)[None]
ADAPTER_WEIGHTS = "adapter_model.safetensors"
OPTIONS = {
    "plain": {},
    "dora": {"use_dora": True},
    "a whole head": {"modules_to_save": ["lm_head"]},
    "whole embeddings": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}},
    "excluded": {"exclude_modules": ["down_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "not zero": {"init_lora_weights": False},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, ranks": {"init_lora_weights": "pissa_niter_4", "rank_pattern": {"q_proj": 2}},
    "olora": {"init_lora_weights": "olora"},
    "olora, dora": {"init_lora_weights": "olora", "use_dora": True},
    "biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "adapter bias": {"lora_bias": True},
    "new tokens": {"trainable_token_indices": [4, 5]},
}
WITH_BIASES = {"attention_bias": True, "mlp_bias": True}
TARGETS = [
    {"target_modules": ["q_proj"], "options": {"layers_to_transform": [1], "layers_pattern": "layers"}},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["lm_head", "q_proj"]},
]


@pytest.fixture(scope="module")
def untied(tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untied")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    language_model("llama", tokenizer, tie_word_embeddings=False, **WITH_BIASES).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tied(tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    language_model("llama", tokenizer, tie_word_embeddings=True, **WITH_BIASES).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["tied", "untied"])
def base(request):
    return request.getfixturevalue(request.param)


def logits(model):
    with torch.no_grad():
        return (model.model if isinstance(model, LanguageModel) else model)(IDS).logits


def train(policy, std=0.1):
    """Changes everything that is trained, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weights in policy.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn(weights.shape, generator=generator), alpha=std)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-4 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_policy_starts_as_the_checkpoint_and_its_reference_stays_there(untied, options):
    source = PretrainedCausalLM(untied, lora=LoRA(r=4, lora_alpha=8.0, options=options))
    policy = source.load()
    reference = source.load_reference(policy)
    at_first, data = logits(policy), rollout([5, 3], [[4, 6], [2, 5]], vocabulary=20)
    before = policy.completion_statistics(data, 1.0).logprobs.detach()
    if options.get("init_lora_weights") is not False:
        close(at_first, logits(AutoModelForCausalLM.from_pretrained(untied)))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}

    train(policy)

    assert (policy.completion_statistics(data, 1.0).logprobs - before).abs().max() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(reference.completion_statistics(data, 1.0).logprobs, before, atol=1e-4, rtol=0)
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trained
    assert policy.completion_statistics(data, 1.0).logprobs.requires_grad
    assert isinstance(reference, SharedReference) == ("bias" not in options)


@pytest.mark.parametrize("settings", [*({"options": o} for o in OPTIONS.values()), *TARGETS])
def test_plain_transformers_and_plain_peft_compute_what_the_policy_does(base, tmp_path, settings):
    policy = PretrainedCausalLM(base, lora=LoRA(r=4, lora_alpha=8.0, **settings)).load()
    train(policy)

    policy.save_pretrained(tmp_path / "model")

    expected = logits(policy)
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), expected)
    plain = AutoModelForCausalLM.from_pretrained(base)
    start = logits(plain)
    assert (start - expected).abs().max() > 0.1
    close(logits(PeftModel.from_pretrained(plain, tmp_path / "adapter")), expected)
    close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), expected)
    again = PretrainedCausalLM(base, adapter=str(tmp_path / "adapter")).load()
    close(logits(again), expected)


def written_by_peft(base, folder, **settings):
    """An adapter as plain peft trains and writes one, and its logits."""
    config = LoraConfig(**{"r": 3, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    train(model)
    model.save_pretrained(folder)
    return logits(model.eval())


class TestAnAdapterToStartFrom:
    @pytest.mark.parametrize(
        "settings", [{}, {"target_modules": ["embed_tokens"]}, {"use_dora": True, "use_rslora": True}, {"bias": "all"}]
    )
    def test_of_plain_peft_is_the_policy_and_the_reference_at_first(self, base, tmp_path, settings):
        expected = written_by_peft(base, tmp_path, lora_dropout=0.2, **settings)
        source = PretrainedCausalLM(base, adapter=str(tmp_path))
        policy = source.load()
        reference = source.load_reference(policy)
        data = rollout([5, 3], [[4, 6], [2, 5]], vocabulary=20)
        before = policy.completion_statistics(data, 1.0).logprobs.detach()

        policy.train()
        close(logits(policy), expected)  # no dropout
        train(policy)

        assert (policy.completion_statistics(data, 1.0).logprobs - before).abs().max() > 0.01
        with torch.no_grad():
            torch.testing.assert_close(reference.completion_statistics(data, 1.0).logprobs, before)

    def test_costs_its_own_size_once_more_for_the_reference(self, untied, tmp_path):
        written_by_peft(untied, tmp_path)
        policy = PretrainedCausalLM(untied, adapter=str(tmp_path)).load()
        sizes = {
            flag: sum(p.numel() for n, p in policy.named_parameters() if "lora_" in n and p.requires_grad == flag)
            for flag in (True, False)
        }
        assert sizes[True] == sizes[False] == sum(w.numel() for w in load_file(tmp_path / ADAPTER_WEIGHTS).values())

    def test_gets_the_dtype_of_the_policy(self, untied, tmp_path):
        written_by_peft(untied, tmp_path)
        policy = PretrainedCausalLM(untied, dtype="bfloat16", adapter=str(tmp_path)).load()
        assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}

    def test_has_settings_of_its_own(self, untied, tmp_path):
        with pytest.raises(UserError, match="lora: got it together with the adapter"):
            PretrainedCausalLM(untied, lora=LoRA(), adapter=str(tmp_path))

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda folder: shutil.rmtree(folder), "no such folder; expected a folder that peft wrote"),
            (lambda folder: (folder / "adapter_config.json").unlink(), r"no adapter_config\.json in it"),
            (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), r"no adapter_model\.safetensors in it"),
            (lambda folder: (folder / ADAPTER_WEIGHTS).write_bytes(b"version https://git-lfs"), "Git-LFS"),
            (lambda folder: (folder / ADAPTER_WEIGHTS).write_bytes(b"12345"), "cannot be loaded"),
            (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be loaded"),
            (lambda folder: edit(folder, peft_type="IA3"), "got peft_type IA3, expected LORA"),
            (lambda folder: edit(folder, init_lora_weights="pissa"), "started by pissa, which changes the weights"),
        ],
    )
    def test_that_cannot_be_read_is_refused_before_anything_is_loaded(self, untied, tmp_path, spoil, message):
        folder = tmp_path / "adapter"
        written_by_peft(untied, folder)
        spoil(folder)
        with pytest.raises(UserError, match=message) as raised:
            PretrainedCausalLM(untied, adapter=str(folder)).check()
        assert "\n" not in str(raised.value) and str(folder) in str(raised.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"r": 5}, r"got shape \(3, 32\) of .*lora_A\.weight, expected shape \(5, 32\)"),
            ({"target_modules": ["q_proj", "k_proj"]}, r"v_proj.* is not a weight of|got no .*k_proj"),
            ({"target_modules": ["c_attn"]}, "cannot be loaded: .*c_attn"),
        ],
    )
    def test_of_another_model_is_refused(self, untied, tmp_path, change, message):
        written_by_peft(untied, tmp_path)
        edit(tmp_path, **change)
        with pytest.raises(UserError, match=message) as raised:
            PretrainedCausalLM(untied, adapter=str(tmp_path)).load()
        assert "\n" not in str(raised.value)

    def test_with_embeddings_that_are_not_the_models_is_refused(self, tied, untied, tmp_path):
        written_by_peft(untied, tmp_path, target_modules=["embed_tokens"])
        weights = load_file(tmp_path / ADAPTER_WEIGHTS)
        name = next(name for name in weights if "base_layer" in name and "embed_tokens" in name)
        save_file(weights | {name: weights[name] + 1}, tmp_path / ADAPTER_WEIGHTS)
        with pytest.raises(UserError, match=r"embed_tokens\.base_layer\.weight is not a weight of"):
            PretrainedCausalLM(untied, adapter=str(tmp_path)).load()

    def test_is_not_taken_for_a_model(self, untied, tmp_path):
        written_by_peft(untied, tmp_path)
        with pytest.raises(UserError, match="a folder with an adapter alone; name the model under it"):
            PretrainedCausalLM(str(tmp_path)).check()


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"use_dorra": True},
                r"options\.use_dorra: no such setting of peft\.LoraConfig \(did you mean 'use_dora'",
            ),
            ({"zzz": 1}, "no such setting .*; expected one of .*use_dora"),
            ({"lora_dropout": 0.1}, "lora_dropout: cannot be used: sampling and training must see the same policy"),
            ({"r": 8}, r"is a setting of its own; set lora\.r"),
            ({"task_type": "SEQ_CLS"}, "no such setting"),
            ({"eva_config": {}}, "needs a pass over data"),
            ({"init_lora_weights": "corda"}, "init_lora_weights: 'corda' cannot be used: it needs a pass over data"),
            ({"init_lora_weights": "loftq"}, "would not start as the checkpoint"),
            ({"layer_replication": [[0, 2]]}, "share weights"),
            ({"layers_to_transform": [0]}, "peft: `layers_to_transform` cannot be used when `target_modules` is a str"),
        ],
    )
    def test_that_cannot_work_are_refused_before_anything_is_loaded(self, untied, options, message):
        with pytest.raises(UserError, match=message) as raised:
            PretrainedCausalLM(untied, lora=LoRA(options=options)).check()
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"modules_to_save": ["lm_haed"]}, "modules_to_save: got 'lm_haed', but no layer of that name was adapted"),
            ({"rank_pattern": {"q_prj": 2}}, "q_prj"),
            ({"exclude_modules": ".*"}, "peft: .*excluded"),
            ({"exclude_modules": "("}, "peft: "),
            ({"init_lora_weights": "pisa"}, "peft: .*pisa"),
            ({"target_parameters": ["experts.no_such"]}, "peft"),
        ],
    )
    def test_that_the_model_cannot_have_are_refused_in_one_line(self, untied, options, message):
        with pytest.raises(UserError, match=message) as raised:
            PretrainedCausalLM(untied, lora=LoRA(options=options)).load()
        assert "\n" not in str(raised.value)


def test_every_layer_that_is_named_has_to_be_there(untied):
    with pytest.raises(UserError, match=r"lora\.target_modules: got 'v_prj', but no layer of that name"):
        PretrainedCausalLM(untied, lora=LoRA(target_modules=["q_proj", "v_prj"])).load()


class TestTheWrittenAdapter:
    def test_names_the_folder_of_its_model_from_everywhere(self, untied, tmp_path, monkeypatch):
        monkeypatch.chdir(Path(untied).parent)
        policy = PretrainedCausalLM(f"./{Path(untied).name}", lora=LoRA(r=4)).load()
        policy.save_pretrained(tmp_path / "model")
        written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (written["base_model_name_or_path"], written["inference_mode"]) == (untied, True)

    def test_holds_the_adapter_alone_and_its_bytes_differ_from_the_start(self, untied, tmp_path):
        policy = PretrainedCausalLM(untied, lora=LoRA(r=4)).load()
        policy.save_pretrained(tmp_path / "before" / "model")
        train(policy)
        policy.save_pretrained(tmp_path / "after" / "model")
        before, after = (tmp_path / when / "adapter" / ADAPTER_WEIGHTS for when in ("before", "after"))
        assert all("lora_" in name for name in load_file(after))
        assert before.read_bytes() != after.read_bytes() and before.stat().st_size == after.stat().st_size

    def test_is_not_written_for_a_policy_without_one(self, untied, tmp_path):
        PretrainedCausalLM(untied).load().save_pretrained(tmp_path / "model")
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
