"""CISPO: the ratio is capped, not the update."""

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.base import LossInputs, PolicyLoss, Surrogate
from grpovi_lightning.losses.kl import KLEstimator
from grpovi_lightning.ops import masked_mean


class CISPOLoss(PolicyLoss):
    """Policy gradient with truncated importance weights (MiniMax-M1, arXiv 2506.13585), aggregated as `DAPOLoss`.

        -min(rho, epsilon_high) A logprob, with no gradient through rho

    No token loses its gradient, however far its ratio has moved.

    >>> import torch
    >>> logprobs, old = torch.full((2, 2), -1.0), torch.full((2, 2), -4.0)  # a ratio of exp(3) = 20
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> CISPOLoss()(logprobs, old, torch.tensor([4.0, -2.0]), mask).loss.item()  # 5 * (4 + 4 - 2) / 3 tokens
    10.0
    """

    def __init__(self, beta: float = 0.0, epsilon_high: float = 5.0, kl: KLEstimator | None = None) -> None:
        """Set the hyper-parameters, named as in TRL.

        Args:
            beta: coefficient of the KL penalty; 0 needs no reference model.
            epsilon_high: the largest ratio itself, not its distance from 1 as in the clipped losses; at least 1. The
                default is that of ScaleRL (arXiv 2510.13786, epsilon_max), which TRL recommends. MiniMax-M1 writes
                the same cap as 1 + epsilon_high.
            kl: the estimator that is penalised; default `K3`.
        """
        super().__init__(beta, kl)
        if not epsilon_high >= 1:
            raise UserError(
                f"epsilon_high: got {epsilon_high}, expected at least 1, because CISPO caps the ratio itself with it; "
                "write 1.28 for a cap that is 0.28 above 1"
            )
        self.epsilon_high = epsilon_high

    def surrogate(self, inputs: LossInputs) -> Surrogate:
        ratio = inputs.log_ratio.detach().exp()
        # Counted as in TRL, for comparison; the cap itself holds for advantages of either sign.
        capped = (ratio > self.epsilon_high) & (inputs.advantages > 0)
        return Surrogate(
            -ratio.clamp(max=self.epsilon_high) * inputs.advantages * inputs.logprobs,
            {keys.CISPO_CLIP_RATIO: masked_mean(capped.float(), inputs.mask)},
        )
