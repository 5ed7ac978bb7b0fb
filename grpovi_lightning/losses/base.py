"""The contract of a policy loss and the pieces that its members share."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops import masked_mean


class LossOutput(NamedTuple):
    """The loss to differentiate, and per-token means to log, each a detached scalar tensor."""

    loss: Tensor
    metrics: dict[str, Tensor]


class PolicyLoss(ABC):
    """Advantages and log-probabilities -> loss."""

    def __init__(self, beta: float = 0.0) -> None:
        """Takes `beta`, the coefficient of the KL penalty, at least 0."""
        if not 0.0 <= beta < float("inf"):
            raise UserError(f"beta: got {beta}, expected a finite number of at least 0")
        self.beta = beta

    @property
    def needs_reference(self) -> bool:
        """Whether `ref_logprobs` must be given."""
        return self.beta > 0

    @abstractmethod
    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        completion_mask: Tensor,
        ref_logprobs: Tensor | None = None,
        denominator: Tensor | float | None = None,
    ) -> LossOutput:
        """Computes the loss of some of the sequences of a batch.

        Args:
            logprobs: [B, T] of the current policy, with gradient.
            old_logprobs: [B, T] of the policy that sampled.
            advantages: [B].
            completion_mask: [B, T] bool.
            ref_logprobs: [B, T] of the reference policy; needed when beta > 0.
            denominator: what the sum is divided by; pass the whole batch's when these are only a part of
                it, so that splitting does not change the gradient. None: that of these sequences.
        """


def clipped_ratio_loss(
    log_ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A), per token.

    Args:
        log_ratio: [B, T], zero where masked.
        advantages: [B, 1] or [B, T].
        epsilon: lower clip range.
        epsilon_high: upper clip range.

    Returns:
        (loss [B, T], clipped low [B, T] bool, clipped high [B, T] bool); clipped means that the
        gradient is cut off there.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - epsilon, 1.0 + epsilon_high)
    low = (ratio < 1.0 - epsilon) & (advantages < 0)
    high = (ratio > 1.0 + epsilon_high) & (advantages > 0)
    return -torch.minimum(ratio * advantages, clipped * advantages), low, high


def k3_divergence(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(ref - lp) - (ref - lp) - 1: unbiased, non-negative estimate of KL(policy || reference) per token.

    J. Schulman, "Approximating KL divergence" (2020), the estimator k3. [B, T] -> [B, T], nats.
    """
    difference = ref_logprobs - logprobs
    # expm1 keeps the digits that exp(x) - 1 loses where the policies hardly differ.
    return difference.expm1() - difference


def clip_metrics(low: Tensor, high: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """TRL's clip ratios: share of tokens whose ratio is clipped below, above, or either."""
    return {
        keys.CLIP_RATIO_LOW_MEAN: masked_mean(low.float(), mask),
        keys.CLIP_RATIO_HIGH_MEAN: masked_mean(high.float(), mask),
        keys.CLIP_RATIO_REGION_MEAN: masked_mean((low | high).float(), mask),
    }
