"""GMPO: the geometric mean of the ratios of a sequence, each clipped."""

import torch

from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.base import LossInputs, Surrogate
from grpovi_lightning.losses.clipped import clip_ratios
from grpovi_lightning.losses.kl import KLEstimator
from grpovi_lightning.losses.sequence_mean import SequenceMeanLoss
from grpovi_lightning.ops import masked_mean


class GMPOLoss(SequenceMeanLoss):
    """Geometric-mean policy optimisation (arXiv 2507.20673; TRL's `GMPOTrainer`), the mean over sequences.

        -A exp( 1 / |y| sum_t c_t ),   c = min(log rho, epsilon_high) where A > 0, else max(log rho, -epsilon)

    Where `GSPOLoss` clips the mean, this clips each token, so that one outlier costs its own gradient alone. With one
    update per rollout it is `GRPOLoss`; so it is for completions of one token and the clip range
    [exp(-epsilon), exp(epsilon_high)]; where nothing is clipped it is `GSPOLoss`. With a token selection the mean stays
    that over all tokens, where TRL takes the selected ones.

    >>> old, logprobs = torch.tensor([[0.25, 0.1]]).log(), torch.tensor([[0.5, 0.4]]).log()  # ratios 2 and 4
    >>> loss = GMPOLoss(epsilon=1.0)(logprobs, old, torch.tensor([1.0]), torch.ones(1, 2, dtype=torch.bool)).loss
    >>> round(loss.item(), 3)  # -sqrt(2 e), because 4 is clipped at e
    -2.332
    """

    def __init__(
        self,
        beta: float = 0.0,
        epsilon: float = 0.4,
        epsilon_high: float | None = None,
        kl: KLEstimator | None = None,
    ) -> None:
        """Set the hyper-parameters, named as in TRL; the clip range is the paper's.

        Args:
            beta: coefficient of the KL penalty, which is the mean over tokens as in `GRPOLoss`; 0 needs no reference.
            epsilon: lower clip range of the log ratio, not of the ratio as in the other clipped losses; above 0.
            epsilon_high: upper clip range of the log ratio; None is `epsilon`.
            kl: the estimator that is penalised; default `K3`.
        """
        super().__init__(beta, kl)
        high = epsilon if epsilon_high is None else epsilon_high
        if not (0 < epsilon < float("inf") and 0 < high < float("inf")):
            raise UserError(f"clip range: got epsilon {epsilon}, epsilon_high {high}; expected finite numbers above 0")
        self.epsilon, self.epsilon_high = epsilon, high

    def surrogate(self, inputs: LossInputs) -> Surrogate:
        advantages, log_ratio, mask = inputs.advantages, inputs.log_ratio, inputs.mask
        high, low = (log_ratio > self.epsilon_high) & (advantages > 0), (log_ratio < -self.epsilon) & (advantages < 0)
        clipped = torch.where(high, self.epsilon_high, torch.where(low, -self.epsilon, log_ratio))
        ratio = masked_mean(clipped, mask, dim=1)[:, None].exp()
        return Surrogate((-ratio * advantages).expand_as(log_ratio), clip_ratios(low, high, mask))
