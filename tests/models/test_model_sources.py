import json
import shutil

import pytest
import torch
from tiny_models import CONFIGS, language_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LoRA, NewCausalLM, PretrainedCausalLM, load_classifier
from grpovi_lightning.models.sources import load_config

LLAMA = {"model_type": "llama", **CONFIGS["llama"]}


def saved(family, tokenizer, folder, **settings):
    language_model(family, tokenizer, **settings).save_pretrained(folder)
    return str(folder)


def edited(source, folder, file="config.json", **changes):
    """A copy of a checkpoint with other values in one of its JSON files."""
    if source != folder:
        shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(content))
    return folder


def test_a_checkpoint_folder_gives_the_weights_that_transformers_reads(policy_folder):
    loaded = PretrainedCausalLM(str(policy_folder)).load()

    expected = AutoModelForCausalLM.from_pretrained(policy_folder).state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(policy_folder).get_vocab()


def test_the_weights_get_the_dtype_that_is_asked_for(policy_folder):
    loaded = PretrainedCausalLM(str(policy_folder), dtype="bfloat16").load()

    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_every_load_gives_a_copy_of_its_own(policy_folder):
    source = PretrainedCausalLM(str(policy_folder))
    first, second = source.load(), source.load()

    with torch.no_grad():
        next(first.parameters()).add_(1.0)

    assert not torch.equal(next(first.parameters()), next(second.parameters()))


@pytest.mark.parametrize(
    "load", [lambda path: PretrainedCausalLM(path).load(), lambda path: load_classifier(path, new_head=True)]
)
class TestFoldersThatAreNoCheckpoint:
    def test_a_missing_folder_is_refused_with_its_name(self, load, tmp_path):
        with pytest.raises(UserError, match=r"nowhere.*no such folder.*expected a Hugging Face checkpoint folder"):
            load(str(tmp_path / "nowhere"))

    def test_a_folder_without_config_is_refused(self, load, tmp_path):
        with pytest.raises(UserError, match=r"a folder without config\.json"):
            load(str(tmp_path))

    def test_pickled_weights_are_refused_because_they_can_carry_code(self, load, policy_folder, tmp_path):
        folder = tmp_path / "pickled"
        shutil.copytree(policy_folder, folder)
        (folder / "model.safetensors").unlink()
        state = AutoModelForCausalLM.from_pretrained(policy_folder).state_dict()
        torch.save(state, folder / "pytorch_model.bin")

        with pytest.raises(UserError, match=r"no \*\.safetensors in it; convert the weights"):
            load(str(folder))

    def test_an_unknown_model_type_is_refused_in_one_line(self, load, policy_folder, tmp_path):
        folder = edited(policy_folder, tmp_path / "strange", model_type="no_such_model", architectures=["NoSuchModel"])

        with pytest.raises(UserError, match="no_such_model") as raised:
            load(str(folder))
        assert "\n" not in str(raised.value)

    def test_code_that_comes_with_a_checkpoint_is_not_run(self, load, policy_folder, tmp_path):
        folder, trace = tmp_path / "hostile", tmp_path / "code_was_run"
        classes = {
            "AutoConfig": "hostile.HostileConfig",
            "AutoModelForCausalLM": "hostile.HostileModel",
            "AutoModelForSequenceClassification": "hostile.HostileModel",
        }
        edited(policy_folder, folder, model_type="hostile", auto_map=classes, architectures=["HostileModel"])
        edited(folder, folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["hostile.HostileTokenizer", None]})
        (folder / "hostile.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).write_text('run')\n")

        with pytest.raises(UserError):
            load(str(folder))
        assert not trace.exists()

    def test_code_is_not_run_either_where_the_model_type_is_a_known_one(self, load, policy_folder, tmp_path):
        folder, trace = tmp_path / "hostile", tmp_path / "code_was_run"
        classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "hostile.Hostile")
        edited(policy_folder, folder, auto_map=classes)
        edited(folder, folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["hostile.HostileTokenizer", None]})
        (folder / "hostile.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).write_text('run')\n")

        load(str(folder))

        assert not trace.exists()


def test_a_model_that_generates_no_text_is_refused_in_one_line(policy_folder, tmp_path):
    folder = edited(policy_folder, tmp_path / "t5", model_type="t5", architectures=["T5ForConditionalGeneration"])

    with pytest.raises(UserError) as raised:
        PretrainedCausalLM(str(folder)).load()
    assert "\n" not in str(raised.value)


def test_a_checkpoint_that_lacks_weights_is_refused_rather_than_filled_with_random_ones(reward_folder):
    with pytest.raises(UserError, match=r"missing, among them lm_head\.weight; expected .*LlamaForCausalLM"):
        PretrainedCausalLM(str(reward_folder)).load()


def test_weights_that_are_tied_are_not_missing(tiny_tokenizer, tmp_path):
    folder = saved("llama", tiny_tokenizer, tmp_path, tie_word_embeddings=True)

    model = PretrainedCausalLM(folder).load().model

    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_dropout_is_off_so_that_sampling_and_training_see_the_same_policy(tiny_tokenizer, tmp_path):
    folder = saved("gpt2", tiny_tokenizer, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["resid_pdrop"] == 0.1

    policy = PretrainedCausalLM(folder).load().train()

    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(policy.model(ids).logits, policy.model(ids).logits)
    assert {m.p for m in policy.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_dropout_is_off_in_the_parts_of_a_composite_configuration_too(tmp_path):
    config = AutoConfig.for_model("gemma3")
    config.text_config.attention_dropout = config.vision_config.attention_dropout = 0.1
    config.save_pretrained(tmp_path)

    loaded = load_config(str(tmp_path))

    assert (loaded.text_config.attention_dropout, loaded.vision_config.attention_dropout) == (0.0, 0.0)


def test_every_end_token_of_the_generation_config_and_of_the_tokenizer_counts(policy_folder, tmp_path):
    folder = edited(policy_folder, tmp_path / "ends", "generation_config.json", eos_token_id=[7, 9])

    policy = PretrainedCausalLM(str(folder)).load()

    assert sorted(policy.end_token_ids) == sorted([7, 9, policy.tokenizer.eos_token_id])


def test_a_model_without_any_end_token_is_refused(policy_folder, tmp_path):
    folder = edited(policy_folder, tmp_path / "endless", "generation_config.json", eos_token_id=None)
    edited(folder, folder, eos_token_id=None)
    edited(folder, folder, "tokenizer_config.json", eos_token=None)

    with pytest.raises(UserError, match="no end token"):
        PretrainedCausalLM(str(folder)).load()


def test_a_tokenizer_without_padding_pads_with_an_end_token(policy_folder, tmp_path):
    folder = edited(policy_folder, tmp_path / "unpadded", "tokenizer_config.json", pad_token=None)

    policy = PretrainedCausalLM(str(folder)).load()
    ids, mask = policy.encode_prompts(["write about the fox", "the fox"])

    assert policy.pad_token_id in policy.end_token_ids
    assert mask.tolist() == [[True] * 4, [False, False, True, True]]
    assert ids[1, :2].tolist() == [policy.pad_token_id] * 2
    assert ids[1, 2:].tolist() == ids[0, 2:].tolist()


def test_an_empty_prompt_is_refused(policy_folder):
    with pytest.raises(UserError, match="prompt '' has no tokens"):
        PretrainedCausalLM(str(policy_folder)).load().encode_prompts(["the fox", ""])


def test_a_prompt_does_not_end_where_the_tokenizer_appends_end_tokens(policy_folder):
    policy = PretrainedCausalLM(str(policy_folder)).load()

    ids, mask = policy.encode_prompts(["the fox <eos>"])

    assert ids[mask].tolist() == policy.encode(["the fox"])[0]


class TestNewModels:
    def test_vocabulary_and_special_tokens_come_from_the_tokenizer(self, tokenizer_folder, tiny_tokenizer):
        model = NewCausalLM(LLAMA, str(tokenizer_folder)).load().model

        assert model.get_input_embeddings().weight.shape == (len(tiny_tokenizer), 32)
        assert model.config.eos_token_id == tiny_tokenizer.eos_token_id
        assert model.config.pad_token_id == tiny_tokenizer.pad_token_id

    def test_the_same_seed_gives_the_same_weights_and_another_seed_others(self, tokenizer_folder):
        def weights(seed):
            torch.rand(1)  # whatever the global generator went through
            model = NewCausalLM(LLAMA, str(tokenizer_folder), seed=seed).load().model
            return torch.cat([p.flatten() for p in model.parameters()])

        first, again, other = weights(4), weights(4), weights(5)

        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_building_a_model_leaves_the_global_generator_alone(self, tokenizer_folder):
        before = torch.get_rng_state()
        NewCausalLM(LLAMA, str(tokenizer_folder)).load()
        assert torch.equal(torch.get_rng_state(), before)

    def test_dropout_is_off(self, tokenizer_folder):
        policy = NewCausalLM({"model_type": "gpt2", **CONFIGS["gpt2"]}, str(tokenizer_folder)).load().train()
        assert {m.p for m in policy.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}

    def test_an_unknown_model_type_is_refused_in_a_short_line(self, tokenizer_folder):
        with pytest.raises(UserError, match="no_such_model") as raised:
            NewCausalLM({"model_type": "no_such_model"}, str(tokenizer_folder)).load()
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 300

    def test_a_setting_that_the_model_type_does_not_have_is_refused(self, tokenizer_folder):
        with pytest.raises(UserError, match="hiden_size"):
            NewCausalLM(LLAMA | {"hiden_size": 64}, str(tokenizer_folder)).load()

    @pytest.mark.parametrize("wrong", [{"hidden_size": "wide"}, {"num_attention_heads": 5}, {"hidden_act": "none"}])
    def test_a_value_that_cannot_work_is_refused_in_one_line(self, tokenizer_folder, wrong):
        with pytest.raises(UserError, match="model config: the model cannot be loaded") as raised:
            NewCausalLM(LLAMA | wrong, str(tokenizer_folder)).load()
        assert "\n" not in str(raised.value)

    def test_a_config_without_model_type_is_refused(self, tokenizer_folder):
        with pytest.raises(UserError, match="expected a `model_type`"):
            NewCausalLM({"hidden_size": 8}, str(tokenizer_folder))

    def test_a_missing_tokenizer_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"no tokenizer_config\.json"):
            NewCausalLM(LLAMA, str(tmp_path)).check()


class TestClassifiers:
    def test_a_classifier_started_from_a_causal_lm_keeps_its_body_and_gives_every_text_the_reward_0(
        self, policy_folder
    ):
        classifier, tokenizer = load_classifier(str(policy_folder), new_head=True)

        body = AutoModelForCausalLM.from_pretrained(policy_folder).model.state_dict()
        assert all(torch.equal(value, body[name]) for name, value in classifier.model.state_dict().items())
        ids = tokenizer(["write about the red fox"], return_tensors="pt")["input_ids"]
        assert classifier(ids).logits.tolist() == [[0.0]]

    def test_a_causal_lm_is_refused_where_a_trained_classifier_is_expected(self, policy_folder):
        with pytest.raises(UserError, match="got LlamaForCausalLM, expected a trained sequence classifier"):
            load_classifier(str(policy_folder))

    def test_a_trained_classifier_keeps_its_head(self, reward_folder):
        classifier, _ = load_classifier(str(reward_folder))

        expected = AutoModelForSequenceClassification.from_pretrained(reward_folder)
        assert torch.equal(classifier.score.weight, expected.score.weight)
        assert float(classifier.score.weight.detach().abs().max()) > 0.1

    def test_a_classifier_with_two_labels_is_refused(self, reward_folder, tmp_path):
        folder = edited(
            reward_folder, tmp_path / "two", id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1}
        )

        with pytest.raises(UserError, match="got 2 labels, expected 1"):
            load_classifier(str(folder))

    def test_a_classifier_scores_batches_where_the_tokenizer_has_no_padding(self, tiny_tokenizer, tmp_path):
        from grpovi_lightning.rewards.models import classifier_scores

        saved("gpt2", tiny_tokenizer, tmp_path)
        edited(tmp_path, tmp_path, pad_token_id=None)
        edited(tmp_path, tmp_path, "tokenizer_config.json", pad_token=None)
        classifier, _ = load_classifier(str(tmp_path), new_head=True)
        torch.nn.init.normal_(classifier.score.weight)
        rows = [[5, 6, 7], [8, 9, 10, 11, 12]]

        together = classifier_scores(classifier, rows)

        alone = torch.cat([classifier_scores(classifier, [row]) for row in rows])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


class TestDamagedCheckpoints:
    """Whatever a library raises for a file becomes one line that names it."""

    @pytest.mark.parametrize(
        ("file", "damage", "message"),
        [
            ("model.safetensors", lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git-LFS"),
            ("model.safetensors", lambda b: b[: len(b) // 2], "model.safetensors cannot be loaded"),
            ("model.safetensors", lambda b: b[:5], "model.safetensors cannot be loaded"),
            ("model.safetensors", lambda b: b"", "model.safetensors cannot be loaded"),
            ("config.json", lambda b: b[: len(b) // 2], "config.json"),
            ("config.json", lambda b: b"[1]", "model .* cannot be loaded"),
            ("config.json", lambda b: b'"text"', "model .* cannot be loaded"),
            ("config.json", lambda b: b.replace(b'"hidden_size": 32', b'"hidden_size": "wide"'), "model .* cannot be"),
            ("config.json", lambda b: b.replace(b'"hidden_size": 32', b'"hidden_size": 48'), "model .* cannot be"),
            ("tokenizer.json", lambda b: b[: len(b) // 2], "tokenizer.* cannot be loaded"),
            ("tokenizer.json", lambda b: b.replace(b"WordLevel", b"NoSuchModel"), "tokenizer.* cannot be loaded"),
            ("tokenizer.json", lambda b: b"{}", "tokenizer.* cannot be loaded"),
            ("tokenizer.json", lambda b: b"\xff\xfe", "tokenizer.* cannot be loaded"),
            (
                "tokenizer.json",
                lambda b: b"version https://git-lfs.github.com/spec/v1\n",
                "tokenizer.* cannot be loaded",
            ),
            ("tokenizer_config.json", lambda b: b[: len(b) // 2], "tokenizer.* cannot be loaded"),
            ("tokenizer_config.json", lambda b: b"[]", "tokenizer.* cannot be loaded"),
            ("generation_config.json", lambda b: b"{", "generation_config.json cannot be loaded"),
        ],
    )
    def test_are_refused_in_one_line(self, policy_folder, tmp_path, file, damage, message):
        folder = tmp_path / "damaged"
        shutil.copytree(policy_folder, folder)
        (folder / file).write_bytes(damage((folder / file).read_bytes()))

        with pytest.raises(UserError, match=message) as raised:
            PretrainedCausalLM(str(folder)).load()
        assert "\n" not in str(raised.value) and str(folder) in str(raised.value)

    def test_weights_are_looked_at_before_anything_is_loaded(self, policy_folder, tmp_path):
        folder = tmp_path / "damaged"
        shutil.copytree(policy_folder, folder)
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])

        with pytest.raises(UserError, match=r"policy .*model.safetensors cannot be loaded: SafetensorError"):
            PretrainedCausalLM(str(folder)).check()


def saved_with(family, tokenizer, folder, **settings):
    return PretrainedCausalLM(saved(family, tokenizer, folder, **settings))


class TestContext:
    """A prompt with its completion that exceeds the positions is refused with both numbers, whatever the source."""

    @pytest.fixture(params=["llama", "gpt2", "gpt_neox", "qwen2", "gemma2", "bart", "new", "adapted", "with adapter"])
    def source(self, request, tiny_tokenizer, tokenizer_folder, tmp_path):
        if request.param == "new":
            return NewCausalLM(LLAMA, str(tokenizer_folder))
        if request.param in CONFIGS:
            language_model(request.param, tiny_tokenizer).save_pretrained(tmp_path)
            return PretrainedCausalLM(str(tmp_path))
        base = saved("llama", tiny_tokenizer, tmp_path / "base")
        adapted = PretrainedCausalLM(base, lora=LoRA(r=2))
        if request.param == "adapted":
            return adapted
        adapted.load().save_pretrained(tmp_path / "model")
        return PretrainedCausalLM(base, adapter=str(tmp_path / "adapter"))

    def test_both_numbers_are_said(self, source):
        policy = source.load()
        rows = [[5] * 40]
        policy.limits.check(rows, lambda i: "row", 24)
        with pytest.raises(UserError, match=r"row: got 40 tokens and 25 for the completion, .* has 64 positions"):
            policy.limits.check(rows, lambda i: "row", 25)


def test_a_vocabulary_that_is_larger_than_the_tokenizer_is_sampled_from_and_read_back(tiny_tokenizer, tmp_path):
    policy = saved_with("llama", tiny_tokenizer, tmp_path, vocab_size=len(tiny_tokenizer) + 30).load()
    beyond = len(tiny_tokenizer) + 3
    assert policy.limits.n_embeddings == len(tiny_tokenizer) + 30
    assert policy.tokenizer.decode([5, beyond, 6]).split() == policy.tokenizer.decode([5, 6]).split()


def test_a_vocabulary_that_is_smaller_than_the_tokenizer_is_refused(tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="has embeddings for 0 to 29; resize them"):
        saved_with("llama", tiny_tokenizer, tmp_path, vocab_size=30).load()


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_attention_is_computed_as_asked_for_with_the_same_result(policy_folder, how):
    policy = PretrainedCausalLM(str(policy_folder), attn_implementation=how).load()
    assert policy.model.config._attn_implementation == how
    ids = torch.arange(3, 17)[None]
    expected = PretrainedCausalLM(str(policy_folder)).load().model(ids).logits
    torch.testing.assert_close(policy.model(ids).logits, expected, atol=1e-5, rtol=0)


def test_attention_that_is_not_there_is_refused_in_one_line(policy_folder):
    with pytest.raises(UserError, match="cannot be loaded") as raised:
        PretrainedCausalLM(str(policy_folder), attn_implementation="flash_attention_2").load()
    assert "\n" not in str(raised.value)
