"""A bonus for entropy, beside any loss."""

from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.losses.base import LossInputs, PolicyLoss, Surrogate


class EntropyBonus(PolicyLoss):
    """Another loss less `entropy_coef` times the entropy of each token's distribution, with its gradient.

        total( ... + penalty - entropy_coef * H(pi) ) / denominator

    It keeps the policy from becoming certain (Mnih et al., arXiv 1602.01783, and PPO; `entropy_coef` of TRL). It counts
    for every token, whatever its advantage, and is aggregated as the other loss is: with `BNPOLoss` it is the mean over
    the tokens of the step, which TRL takes whatever the loss, of each micro-batch. With 0 it is the other loss.

    >>> import torch
    >>> from grpovi_lightning.losses import BNPOLoss
    >>> logprobs, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    >>> loss = EntropyBonus(BNPOLoss(), entropy_coef=0.5)
    >>> loss(logprobs, logprobs, torch.tensor([3.0]), mask, entropies=torch.tensor([[1.0, 3.0]])).loss.item()
    -4.0
    """

    def __init__(self, loss: PolicyLoss, entropy_coef: float) -> None:
        """Put the bonus, with a coefficient of at least 0, beside a policy loss with its KL penalty."""
        super().__init__(loss.beta, loss.kl)
        if not 0.0 <= entropy_coef < float("inf"):
            raise UserError(f"entropy_coef: got {entropy_coef}, expected a finite number of at least 0")
        self.loss, self.entropy_coef = loss, entropy_coef

    @property
    def needs_entropies(self) -> bool:
        return self.entropy_coef > 0 or self.loss.needs_entropies

    @property
    def penalties(self) -> list[str]:
        return self.loss.penalties + ([f"entropy_coef {self.entropy_coef:g}"] if self.entropy_coef > 0 else [])

    def surrogate(self, inputs: LossInputs) -> Surrogate:
        return self.loss.surrogate(inputs)

    def penalty(self, inputs: LossInputs) -> Tensor | None:
        penalty = self.loss.penalty(inputs)
        if self.entropy_coef == 0:
            return penalty
        assert inputs.entropies is not None
        bonus = self.entropy_coef * inputs.entropies
        return -bonus if penalty is None else penalty - bonus

    def total(self, token_loss: Tensor, mask: Tensor) -> Tensor:
        return self.loss.total(token_loss, mask)

    def denominator(self, completion_mask: Tensor, rollout_mask: Tensor | None = None) -> Tensor:
        return self.loss.denominator(completion_mask, rollout_mask)
