"""GRPO: the mean over sequences of the mean over tokens."""

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.base import LossOutput, PolicyLoss, clip_metrics, clipped_ratio_loss, k3_divergence
from grpovi_lightning.ops import masked_mean, masked_sum


class GRPOLoss(PolicyLoss):
    """Clipped surrogate with a KL penalty, as in DeepSeekMath (arXiv 2402.03300, equation 3).

        1 / B sum_b 1 / |y_b| sum_t [ -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) + beta k3 ]

    with rho = exp(logprob - old_logprob). With one update per rollout rho is 1 and the surrogate's
    gradient is that of -A log pi.
    """

    def __init__(self, beta: float = 0.0, epsilon: float = 0.2, epsilon_high: float | None = None) -> None:
        """Takes TRL's hyper-parameters.

        Args:
            beta: coefficient of the KL penalty; 0 needs no reference model.
            epsilon: lower clip range.
            epsilon_high: upper clip range; None is `epsilon`.
        """
        super().__init__(beta)
        high = epsilon if epsilon_high is None else epsilon_high
        if not (0 < epsilon <= 1 and high > 0):
            raise UserError(
                f"clip range: got epsilon {epsilon}, epsilon_high {high}; expected 0 < epsilon <= 1, both > 0"
            )
        self.epsilon, self.epsilon_high = epsilon, high

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        completion_mask: Tensor,
        ref_logprobs: Tensor | None = None,
        denominator: Tensor | float | None = None,
    ) -> LossOutput:
        """See `PolicyLoss`; the denominator counts sequences."""
        mask = completion_mask.bool()
        log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
        token_loss, low, high = clipped_ratio_loss(log_ratio, advantages[:, None], self.epsilon, self.epsilon_high)
        metrics = clip_metrics(low, high, mask)
        if ref_logprobs is not None:
            kl = k3_divergence(torch.where(mask, logprobs, 0.0), torch.where(mask, ref_logprobs, 0.0))
            metrics[keys.KL] = masked_mean(kl.detach(), mask)
            if self.beta > 0:
                token_loss = token_loss + self.beta * kl
        elif self.beta > 0:
            raise ValueError(f"ref_logprobs: got None, expected [B, T] because beta is {self.beta}")
        per_sequence = masked_sum(token_loss, mask, dim=1) / mask.sum(dim=1).clamp(min=1)
        count = len(per_sequence) if denominator is None else denominator
        return LossOutput(per_sequence.sum() / count, metrics)
