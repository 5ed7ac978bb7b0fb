"""The clipped surrogate of PPO, which most of the family share."""

import torch
from torch import Tensor

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.base import LossInputs, PolicyLoss, Surrogate
from grpovi_lightning.losses.kl import KLEstimator
from grpovi_lightning.ops import masked_mean


class ClippedLoss(PolicyLoss):
    """-min(min(rho, delta) A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), with rho = exp(logprob - old_logprob).

    With one update per rollout rho is 1 and the gradient is that of -A log pi.

    The clip stops the gradient where A > 0 and rho is above its range, or A < 0 and rho below it. Where A < 0, a large
    rho is not clipped, but `delta` can cap it (two-sided clipping: INTELLECT-2, arXiv 2505.07291).

    >>> old, logprobs = torch.tensor([[0.1, 0.1]]).log(), torch.tensor([[0.4, 0.1]]).log()  # ratios 4 and 1
    >>> def mean_loss(advantage, **settings):
    ...     mask = torch.ones(1, 2, dtype=torch.bool)
    ...     return round(ClippedLoss(**settings)(logprobs, old, torch.tensor([advantage]), mask).loss.item(), 3)
    >>> mean_loss(1.0), mean_loss(-1.0), mean_loss(-1.0, delta=3.0)  # -(1.2 + 1) / 2, (4 + 1) / 2, (3 + 1) / 2
    (-1.1, 2.5, 2.0)
    """

    def __init__(
        self,
        beta: float = 0.0,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        delta: float | None = None,
        kl: KLEstimator | None = None,
    ) -> None:
        """Set the hyper-parameters, named as in TRL.

        Args:
            beta: coefficient of the KL penalty; 0 needs no reference model.
            epsilon: lower clip range.
            epsilon_high: upper clip range; None is `epsilon`.
            delta: largest ratio of tokens with negative advantage, above 1 + epsilon_high; None is no cap.
            kl: the estimator that is penalised; default `K3`.
        """
        super().__init__(beta, kl)
        high = epsilon if epsilon_high is None else epsilon_high
        if not (0 < epsilon <= 1 and high > 0):
            raise UserError(
                f"clip range: got epsilon {epsilon}, epsilon_high {high}; expected 0 < epsilon <= 1, both > 0"
            )
        if delta is not None and not delta > 1 + high:
            # Negative advantages would be capped at 1 + epsilon_high all the same.
            raise UserError(
                f"delta: got {delta}, expected above 1 + epsilon_high = {1 + high:g}; a smaller cap cannot take effect "
                "on the negative advantages that it is for; raise it or leave it out"
            )
        self.epsilon, self.epsilon_high, self.delta = epsilon, high, delta

    def importance(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """Return the log ratios that are clipped, [B, T]; here each token's own."""
        return log_ratio

    def surrogate(self, inputs: LossInputs) -> Surrogate:
        advantages, ratio = inputs.advantages, self.importance(inputs.log_ratio, inputs.mask).exp()
        lower, upper = 1.0 - self.epsilon, 1.0 + self.epsilon_high
        raw = ratio if self.delta is None else ratio.clamp(max=self.delta)
        token_loss = -torch.minimum(raw * advantages, ratio.clamp(lower, upper) * advantages)
        # Counted as in TRL: tokens that `delta` caps are not among them.
        low, high = (ratio < lower) & (advantages < 0), (ratio > upper) & (advantages > 0)
        return Surrogate(token_loss, clip_ratios(low, high, inputs.mask))


def clip_ratios(low: Tensor, high: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the shares of tokens that lose their gradient below and above, and of both; all [B, T] bool."""
    return {
        keys.CLIP_RATIO_LOW_MEAN: masked_mean(low.float(), mask),
        keys.CLIP_RATIO_HIGH_MEAN: masked_mean(high.float(), mask),
        keys.CLIP_RATIO_REGION_MEAN: masked_mean((low | high).float(), mask),
    }
