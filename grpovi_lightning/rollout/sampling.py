"""How a token is drawn from logits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpovi_lightning.errors import UserError

TokenChoice = Callable[[Tensor, Tensor], Tensor]
"""Probabilities [B, V] float64 and uniform numbers [B] -> tokens [B]."""


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling settings under TRL's names.

    Attributes:
        max_completion_length: tokens a completion may have, the end token included.
        temperature: divides the logits; above 0.
        top_k: keep only the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        min_p: keep tokens with at least this share of the most probable one's probability; 0 keeps all.
        repetition_penalty: positive logits of tokens that occur in prompt or completion are divided by this, negative
            ones multiplied, before the temperature (arXiv 1909.05858); 1 changes nothing.
    """

    max_completion_length: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "max_completion_length": (self.max_completion_length >= 1, "at least 1"),
            "temperature": (0.0 < self.temperature < float("inf"), "a number above 0"),
            "top_k": (self.top_k >= 0, "at least 0 (0: off)"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0 and at most 1 (1: off)"),
            "min_p": (0.0 <= self.min_p < 1.0, "at least 0 (0: off) and below 1"),
            "repetition_penalty": (0.0 < self.repetition_penalty < float("inf"), "a number above 0 (1: off)"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise UserError(f"sampling.{name}: got {getattr(self, name)}, expected {expected}")

    def unfiltered(self) -> Self:
        """Return the settings with temperature 1 and without filters: neither changes which token is most probable."""
        return replace(self, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)

    def processors(self) -> LogitsProcessorList:
        """Return what is done to the logits before a token is drawn, in the order of `transformers`' own generation."""
        chosen = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature != 1.0:
            chosen.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k > 0:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chosen.append(TopPLogitsWarper(self.top_p))
        if self.min_p > 0.0:
            chosen.append(MinPLogitsWarper(self.min_p))
        return chosen


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the tokens [B] at which cumulative distributions first exceed uniform numbers in [0, 1), float64 [B].

    Probabilities are [B, V] float64, up to a common factor in each row.

    >>> probabilities = torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64).expand(3, -1)
    >>> inverse_cdf(probabilities, torch.tensor([0.0, 0.25, 0.999], dtype=torch.float64)).tolist()
    [0, 2, 2]
    """
    cumulative = probabilities.cumsum(dim=-1)
    # Scaling by the last sum keeps u just under 1 from falling past the end through rounding; a token of
    # probability 0 is never chosen because the comparison is strict.
    target = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=probabilities.shape[-1] - 1)


def most_probable(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the tokens [B] of the largest probabilities [B, V], the first of equal ones: greedy decoding.

    >>> most_probable(torch.tensor([[0.2, 0.4, 0.4]]), torch.tensor([0.9])).tolist()
    [1]
    """
    return probabilities.argmax(dim=-1)
