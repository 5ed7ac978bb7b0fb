"""GSPO: one ratio for a whole sequence."""

from torch import Tensor

from grpovi_lightning.losses.grpo import GRPOLoss
from grpovi_lightning.losses.kl import KLEstimator
from grpovi_lightning.ops import masked_mean


class GSPOLoss(GRPOLoss):
    """GRPO with the ratio of sequences instead of tokens (arXiv 2507.18071; TRL's `importance_sampling_level`).

        rho = exp( 1 / |y| sum_t (logprob_t - old_logprob_t) )

    All tokens of a completion share the ratio, are clipped together, and get the gradient through its mean. The clip
    ratios are shares of tokens, as in the other losses, where TRL counts sequences. With one update per rollout, or
    with completions of one token and the same clip range, this is `GRPOLoss`.

    >>> import torch
    >>> old, logprobs = torch.full((2, 2), 0.25).log(), torch.tensor([[0.5, 0.125], [0.25, 0.25]]).log()
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> loss = GSPOLoss()(logprobs, old, torch.tensor([4.0, -2.0]), mask).loss
    >>> round(loss.item(), 3)  # sqrt(2 * 0.5) = 1 and 1, so the mean of -4 and 2
    -1.0
    """

    def __init__(
        self,
        beta: float = 0.0,
        epsilon: float = 3e-4,
        epsilon_high: float | None = 4e-4,
        delta: float | None = None,
        kl: KLEstimator | None = None,
    ) -> None:
        """Set the hyper-parameters of `ClippedLoss`; the clip range is the paper's (section 5.1).

        It is a thousandth of GRPO's, because the mean over a completion moves much less than one token: at 0.2 nothing
        would ever be clipped. Short completions may need a wider range; watch the clip ratios.
        """
        super().__init__(beta, epsilon, epsilon_high, delta, kl)

    def importance(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of its sequence for every token, [B, T]."""
        return masked_mean(log_ratio, mask, dim=1)[:, None].expand_as(log_ratio)
