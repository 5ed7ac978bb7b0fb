"""GSPO: one ratio for a whole sequence."""

from torch import Tensor

from grpovi_lightning.losses.grpo import GRPOLoss
from grpovi_lightning.losses.kl import KLEstimator
from grpovi_lightning.ops import masked_mean


class GSPOLoss(GRPOLoss):
    """GRPO with the ratio of sequences instead of tokens (arXiv 2507.18071; TRL's `importance_sampling_level`).

        rho = exp( 1 / |y| sum_t (logprob_t - old_logprob_t) )

    All tokens of a completion share the ratio, are clipped together, and get the gradient through its mean. The clip
    ratios are shares of tokens, as in the other losses, where TRL counts sequences. With one update per rollout this
    is `GRPOLoss`, and for completions of one token it is so always, at the same clip range.
    """

    def __init__(
        self,
        beta: float = 0.0,
        epsilon: float = 3e-4,
        epsilon_high: float | None = 4e-4,
        delta: float | None = None,
        kl: KLEstimator | None = None,
    ) -> None:
        """Takes the hyper-parameters of `ClippedLoss`; the clip range is the paper's (section 5.1).

        It is a thousandth of GRPO's, because a mean over a completion moves so much less than one token does: at 0.2
        nothing would ever be clipped. Short completions may need a wider one; watch the clip ratios.
        """
        super().__init__(beta, epsilon, epsilon_high, delta, kl)

    def importance(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """The mean of its sequence at every token."""
        return masked_mean(log_ratio, mask, dim=1)[:, None].expand_as(log_ratio)
