"""SAPO: a soft gate in place of the clip."""

import torch

from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.base import LossInputs, Surrogate
from grpovi_lightning.losses.kl import KLEstimator
from grpovi_lightning.losses.sequence_mean import SequenceMeanLoss


class SAPOLoss(SequenceMeanLoss):
    """Soft adaptive policy optimisation (arXiv 2511.20347; TRL's `sapo`), aggregated as `GRPOLoss`.

        -4 / tau sigmoid( tau (rho - 1) ) A,   tau = sapo_temperature_pos where A > 0, else sapo_temperature_neg

    The gradient is that of -rho A times 4 s (1 - s), s the sigmoid: the full one at rho = 1, less the farther rho is
    from 1 on either side, never exactly 0 at once as beyond a clip. With one update per rollout it is `GRPOLoss`. As
    tau falls to 0, the gate opens, and the gradient becomes that of the unclipped -rho A; there is no such setting.

    >>> logprobs, old = torch.tensor([[0.5], [0.5]]).log(), torch.tensor([[0.5], [0.25]]).log()  # ratios 1 and 2
    >>> loss = SAPOLoss()(logprobs, old, torch.tensor([1.0, 1.0]), torch.ones(2, 1, dtype=torch.bool)).loss
    >>> round(loss.item(), 3)  # -4 (sigmoid(0) + sigmoid(1)) / 2
    -2.462
    """

    def __init__(
        self,
        beta: float = 0.0,
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        kl: KLEstimator | None = None,
    ) -> None:
        """Set the hyper-parameters, named as in TRL; the temperatures are the paper's.

        Args:
            beta: coefficient of the KL penalty; 0 needs no reference model.
            sapo_temperature_pos: tau of tokens with a positive advantage, above 0; larger closes the gate earlier.
            sapo_temperature_neg: tau of the others; larger, because lowering a token raises all others.
            kl: the estimator that is penalised; default `K3`.
        """
        super().__init__(beta, kl)
        for name, tau in (("pos", sapo_temperature_pos), ("neg", sapo_temperature_neg)):
            if not 0.0 < tau < float("inf"):
                raise UserError(f"sapo_temperature_{name}: got {tau}, expected a finite number above 0")
        self.sapo_temperature_pos, self.sapo_temperature_neg = sapo_temperature_pos, sapo_temperature_neg

    def surrogate(self, inputs: LossInputs) -> Surrogate:
        ratio, advantages = inputs.log_ratio.exp(), inputs.advantages
        tau = [ratio.new_tensor(value) for value in (self.sapo_temperature_pos, self.sapo_temperature_neg)]
        tau = torch.where(advantages > 0, *tau)
        return Surrogate(-4.0 / tau * torch.sigmoid(tau * (ratio - 1.0)) * advantages, {})
