"""What is refused; quantised policies themselves need a GPU."""

import pytest
import torch
from torch import nn

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LoRA, PretrainedCausalLM, Quantization
from grpovi_lightning.modules.checkpoints import FrozenLeftOut

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "rounded weights cannot be trained; add lora or adapter"),
        ({"lora": LoRA(), "quantization": Quantization(8)}, "got 8 with dtype float32"),
        pytest.param({"lora": LoRA()}, "there is no GPU, and bitsandbytes is made for one", marks=no_gpu),
    ],
)
def test_a_quantised_policy_is_refused_before_loading_where_it_cannot_be_trained(policy_folder, settings, message):
    source = PretrainedCausalLM(str(policy_folder), **{"quantization": Quantization()} | settings)
    with pytest.raises(UserError, match=message) as raised:
        source.check()
    assert "\n" not in str(raised.value)


def test_a_gguf_file_is_not_quantised_once_more(policy_folder):
    with pytest.raises(UserError, match="got it for the GGUF file"):
        PretrainedCausalLM(str(policy_folder), gguf_file="m.gguf", lora=LoRA(), quantization=Quantization())


def test_the_settings_are_those_of_bitsandbytes():
    four, eight = Quantization(quant_type="fp4").config(torch.bfloat16), Quantization(8).config(torch.bfloat16)
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "fp4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)


class Rounded(nn.Module):
    """Keeps whole numbers and a scale, which it writes as bitsandbytes does and does not read back."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1, 2], dtype=torch.int8), requires_grad=False)
        self.scale = torch.tensor(0.5)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = destination[f"{prefix}SCB"] = self.scale


class Adapted(FrozenLeftOut):
    def __init__(self):
        super().__init__()
        self.base, self.adapter = Rounded(), nn.Linear(2, 2)


def test_checkpoints_leave_out_the_scales_of_quantised_weights_and_load_without_them():
    first, second = Adapted(), Adapted()
    checkpoint = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {"adapter.weight", "adapter.bias"}

    second.on_load_checkpoint(checkpoint)
    second.load_state_dict(checkpoint["state_dict"], strict=True)

    assert torch.equal(second.adapter.weight, first.adapter.weight)
