"""DPPO: a token stays out when its probability, not its ratio, has moved too far."""

from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.base import LossInputs, PolicyLoss, Surrogate
from grpovi_lightning.losses.clipped import clip_ratios
from grpovi_lightning.losses.kl import KLEstimator


class DPPOTVLoss(PolicyLoss):
    """Divergence PPO with the binary total variation (arXiv 2602.04879), aggregated as `DAPOLoss`.

        -A min(rho, max_ratio) logprob, with no gradient through rho,
        where A > 0 and pi - pi_old <= epsilon_high, or A < 0 and pi - pi_old >= -epsilon; 0 elsewhere

    |pi - pi_old| of the sampled token is a lower bound of the total variation between the policies there. A clip of the
    ratio stops rare tokens early and frequent ones late; this does the opposite. With `epsilon` 1 no token stays out,
    and the loss is `CISPOLoss` with the cap `max_ratio`. The paper takes pi_old from the sampler; here it is what the
    other losses take: the sampler's in full precision, else recomputed before the first update.

    >>> import torch
    >>> old, logprobs = torch.tensor([[0.01, 0.5]]).log(), torch.tensor([[0.04, 0.75]]).log()  # up by 0.03 and 0.25
    >>> loss = DPPOTVLoss()(logprobs, old, torch.tensor([1.0]), torch.ones(1, 2, dtype=torch.bool)).loss
    >>> round(loss.item(), 3)  # -4 log 0.04 / 2
    6.438
    """

    def __init__(
        self,
        beta: float = 0.0,
        epsilon: float = 0.15,
        epsilon_high: float | None = None,
        max_ratio: float = 20.0,
        kl: KLEstimator | None = None,
    ) -> None:
        """Set the hyper-parameters; the defaults are those of the authors' script in verl.

        Args:
            beta: coefficient of the KL penalty; 0 needs no reference model.
            epsilon: how far the probability of a token with negative advantage may have fallen, in (0, 1].
            epsilon_high: how far that of one with positive advantage may have risen; None is `epsilon`.
            max_ratio: the largest ratio, at least 1.
            kl: the estimator that is penalised; default `K3`.
        """
        super().__init__(beta, kl)
        high = epsilon if epsilon_high is None else epsilon_high
        if not (0 < epsilon <= 1 and 0 < high <= 1):
            raise UserError(f"trust region: got epsilon {epsilon}, epsilon_high {high}; expected both in (0, 1]")
        if not max_ratio >= 1:
            raise UserError(f"max_ratio: got {max_ratio}, expected at least 1")
        self.epsilon, self.epsilon_high, self.max_ratio = epsilon, high, max_ratio

    def surrogate(self, inputs: LossInputs) -> Surrogate:
        logprobs, advantages = inputs.logprobs, inputs.advantages
        moved = logprobs.detach().exp() - inputs.old_logprobs.exp()
        low, high = (moved < -self.epsilon) & (advantages < 0), (moved > self.epsilon_high) & (advantages > 0)
        ratio = inputs.log_ratio.detach().exp().clamp(max=self.max_ratio)
        token_loss = (-ratio * advantages * logprobs).masked_fill(low | high, 0.0)
        return Surrogate(token_loss, clip_ratios(low, high, inputs.mask))
