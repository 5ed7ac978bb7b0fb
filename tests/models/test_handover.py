"""What another engine gets of a policy, and how it is told from what it had."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.tiny_models import language_model
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from grpovi_lightning.models import LoRA, PretrainedCausalLM
from grpovi_lightning.models.handover import HandedOver, digest, is_plain_lora, lora_rank

FAMILIES = ["llama", "gpt2", "qwen2", "gemma2", "mixtral"]
MORE_THAN_LORA = {
    "dora": {"use_dora": True},
    "changed base": {"init_lora_weights": "pissa"},
    "a layer that is trained whole": {"modules_to_save": ["lm_head"]},
    "biases": {"bias": "lora_only"},
}


def shifted(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[3, 4, 5, 6]])).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_values_are_those_of_a_saved_checkpoint(family, tiny_tokenizer, tmp_path):
    model = language_model(family, tiny_tokenizer).model
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")

    found = HandedOver.of(model, adapters=True)

    assert found.adapter is None
    assert found.tensors.keys() == saved.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in saved.items())


def test_plain_lora_is_handed_over_as_peft_would_load_it(policy_folder, tmp_path):
    policy = PretrainedCausalLM(str(policy_folder), lora=LoRA(r=4, options={"rank_pattern": {"q_proj": 6}})).load()
    shifted(policy.model)
    found = HandedOver.of(policy.model, adapters=True)

    assert lora_rank(policy.model) == 6
    base = load_file(policy_folder / "model.safetensors")
    assert found.tensors.keys() == base.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in base.items())
    (tmp_path / "adapter_config.json").write_text(found.adapter.config)
    save_file(dict(found.adapter.tensors), tmp_path / "adapter_model.safetensors")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_folder), tmp_path)
    torch.testing.assert_close(logits(again), logits(policy.model))
    assert json.loads(found.adapter.config)["peft_type"] == "LORA"


@pytest.mark.parametrize("options", MORE_THAN_LORA.values(), ids=MORE_THAN_LORA)
def test_other_adapters_are_worked_into_the_weights(policy_folder, options, tmp_path):
    policy = PretrainedCausalLM(str(policy_folder), lora=LoRA(r=4, target_modules=["q_proj"], options=options)).load()
    shifted(policy.model)
    found = HandedOver.of(policy.model, adapters=True)

    assert not is_plain_lora(policy.model) and lora_rank(policy.model) == 0
    assert found.adapter is None
    plain = AutoModelForCausalLM.from_pretrained(policy_folder)
    plain.load_state_dict(dict(found.tensors))
    torch.testing.assert_close(logits(plain), logits(policy.model))


def test_a_model_without_adapters_is_no_lora(policy_folder):
    model = PretrainedCausalLM(str(policy_folder)).load().model
    assert not is_plain_lora(model) and lora_rank(model) == 0


@given(st.data())
def test_the_digest_sees_every_changed_bit_and_no_order(data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=0, max_size=3))
    tensors = {"a": torch.randn(shape).to(dtype), "b": torch.randn(3, 2)}
    before = digest(tensors)
    assert digest(dict(reversed(tensors.items()))) == before

    bits = tensors["a"].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensors["a"].element_size()]).view(-1)
    place, bit = data.draw(st.integers(0, len(bits) - 1)), data.draw(st.integers(0, 8 * bits.element_size() - 2))
    bits[place] ^= 1 << bit
    assert digest(tensors) != before
    bits[place] ^= 1 << bit
    assert digest(tensors) == before


def test_the_digest_sees_names_shapes_dtypes_text_and_weights_that_change_places():
    tensor = torch.arange(6.0).view(2, 3)
    others = [
        digest({"b": tensor}),
        digest({"a": tensor.view(3, 2)}),
        digest({"a": tensor.view(torch.int32)}),
        digest({"a": tensor}, "text"),
        digest({"a": tensor.flip(0)}),
        digest({"a": tensor.flip(1)}),
        digest({"a": tensor, "b": tensor}),
        digest({}),
    ]
    assert len({digest({"a": tensor}), *others}) == 9
    for shape in ((2, 3), (2, 4), (4,)):  # however it lies in memory
        tensor = torch.randn(shape)
        part = torch.cat([torch.zeros(1), tensor.flatten()])[1:].view(shape)
        assert digest({"a": tensor.t().contiguous().t()}) == digest({"a": part}) == digest({"a": tensor})
