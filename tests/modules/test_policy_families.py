"""Three steps of GRPOVI for each family of policies, and what their output folders are to other programs."""

import json

import pytest
import torch
from grpo_runs import PROMPTS, graded, grpo, train
from models.tiny_models import language_model
from peft import PeftModel
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Tokenizer

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.callbacks import ExportModel
from grpovi_lightning.models import LoRA, PretrainedCausalLM

FAMILIES = {"llama": {}, "gpt_neox": {}, "gpt2": {}, "qwen2": {"tie_word_embeddings": True}, "gemma2": {}}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def byte_tokenizer():
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PROMPTS, trainer)
    return Qwen2Tokenizer(
        vocab=tokenizer.get_vocab(), merges=[tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    )


class Run:
    """A policy of a family, trained for three steps; its folders are `base`, `model` and, with LoRA, `adapter`."""

    def __init__(self, family, lora, tokenizer, folder):
        self.base, self.model, self.adapter = folder / "base", folder / "run" / "model", folder / "run" / "adapter"
        if family == "qwen2":  # for which `transformers` reads every tokenizer as one of bytes
            tokenizer = byte_tokenizer()
        tokenizer.chat_template = TEMPLATE
        # A vocabulary that is padded to a round number, as published models have it.
        start = language_model(family, tokenizer, vocab_size=len(tokenizer) + 7, **FAMILIES[family])
        start.save_pretrained(self.base)
        source = PretrainedCausalLM(str(self.base), lora=LoRA(r=4) if lora else None)
        self.module = grpo(self.base, graded, policy=source, adjustment=VarianceIncrease())
        self.recorded = train(self.module, folder / "run", 3, ExportModel(self.model))


@pytest.fixture(scope="module", params=[(f, lora) for f in FAMILIES for lora in (False, True)], ids=str)
def run(request, tokenizer_folder, tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return Run(*request.param, tokenizer, tmp_path_factory.mktemp(request.param[0]))


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 13)[None]).logits


def agree(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.std()), rtol=0)


def test_three_steps_of_grpovi_change_what_is_trained_and_nothing_else(run):
    first, last = run.recorded.before, run.recorded.weights[-1]
    changed = {name for name in last if not torch.equal(last[name], first[name])}
    assert len(run.recorded.outputs) == 3
    assert changed == {name for name, p in run.module.policy.model.named_parameters() if p.requires_grad}
    assert any((o.adjusted.rewards != o.rewards).any() for o in run.recorded.outputs)


def test_the_output_folder_loads_in_plain_transformers(run):
    model, report = AutoModelForCausalLM.from_pretrained(run.model, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    agree(logits(model), logits(run.module.policy.model))


def test_the_adapter_loads_in_plain_peft(run):
    base = AutoModelForCausalLM.from_pretrained(run.base)
    has_adapter = run.module.policy_source.lora is not None
    assert run.adapter.exists() == has_adapter
    if not has_adapter:
        return
    assert (logits(base) - logits(run.module.policy.model)).abs().max() > 1e-3
    agree(logits(PeftModel.from_pretrained(base, run.adapter)), logits(run.module.policy.model))


def test_the_output_folder_has_what_a_server_reads_from_it(run):
    """What vLLM's loader asks of a folder; vLLM itself is not run."""
    config = json.loads((run.model / "config.json").read_text())
    assert config["model_type"] in CONFIG_MAPPING and "auto_map" not in config and "quantization_config" not in config
    assert config["architectures"] == [type(run.module.policy.model).__name__]
    with safe_open(run.model / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
        assert weights.metadata() == {"format": "pt"}
    assert names and not [name for name in names if "lora" in name or "base_layer" in name]
    embedding = run.module.policy.model.get_input_embeddings()
    assert config["vocab_size"] == embedding.num_embeddings
    assert GenerationConfig.from_pretrained(run.model).eos_token_id == run.module.policy.tokenizer.eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.get_vocab() == run.module.policy.tokenizer.get_vocab()
    assert (run.model / "chat_template.jinja").read_text() == TEMPLATE
    assert not list(run.model.parent.glob("*.new"))


def test_only_tied_embeddings_stay_tied(run):
    base, trained = (AutoModelForCausalLM.from_pretrained(folder) for folder in (run.base, run.model))
    tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in (base, trained)]
    assert tied[0] == tied[1] == base.config.tie_word_embeddings
