"""A policy whose weights under the adapters are kept in 4 or 8 bits (QLoRA, arXiv 2305.14314)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.adapters import TRAINED


@dataclass(frozen=True)
class Quantization:
    """How bitsandbytes rounds the weights when they are loaded. Only adapters are trained then.

    Attributes:
        bits: 4 or 8 a weight.
        quant_type: the sixteen numbers of 4 bits.
        double_quant: whether the scales of 4 bits are rounded as well.
    """

    bits: Literal[4, 8] = 4
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True

    def check(self, has_adapters: bool, dtype: str) -> None:
        """Raise `UserError` where it cannot work: without adapters, off a GPU or without bitsandbytes."""
        if self.bits == 8 and dtype == "float32":
            raise UserError(
                "quantization.bits: got 8 with dtype float32, but bitsandbytes computes with 8 bits in float16; set "
                "dtype to bfloat16, or take 4 bits"
            )
        if not has_adapters:
            raise UserError(
                "quantization: rounded weights cannot be trained; add lora or adapter, or leave quantization out"
            )
        if not torch.cuda.is_available():
            raise UserError("quantization: there is no GPU, and bitsandbytes is made for one; leave quantization out")
        try:
            import bitsandbytes  # noqa: F401  # type: ignore[import-not-found]  an extra of the user's
        except ImportError:
            raise UserError("quantization: bitsandbytes is not installed; run pip install bitsandbytes") from None

    def check_adapters(self, model: PreTrainedModel) -> None:
        """Raise `UserError` where adapters could not be merged into rounded weights."""
        if model.peft_config[TRAINED].use_dora:  # type: ignore[index]
            raise UserError("quantization: got use_dora, which cannot be merged into rounded weights; leave one out")

    def config(self, dtype: torch.dtype) -> Any:
        """Return the `transformers` configuration; products are computed in `dtype`."""
        if self.bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
