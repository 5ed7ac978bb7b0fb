"""DAPO: the mean over the tokens of the rollout, with more room above than below."""

from grpovi_lightning.losses.clipped import ClippedLoss
from grpovi_lightning.losses.kl import KLEstimator


class DAPOLoss(ClippedLoss):
    """The clipped surrogate with "clip higher", aggregated over tokens (DAPO, arXiv 2503.14476; TRL's default).

    A token weighs the same in every optimiser step on one rollout. Where the rollout is one step, this is `BNPOLoss`
    with another `epsilon_high`. DAPO's dynamic sampling and overlong reward shaping are no part of the loss.

    >>> import torch
    >>> old, logprobs = torch.full((2, 2), 0.4).log(), torch.full((2, 2), 0.5).log()  # 1.25, within 1 + 0.28
    >>> mask = torch.tensor([[True, True], [True, False]])
    >>> loss = DAPOLoss()(logprobs, old, torch.tensor([4.0, -2.0]), mask).loss
    >>> round(loss.item(), 3)  # 1.25 * (-4 - 4 + 2) / 3 tokens
    -2.5
    """

    def __init__(
        self,
        beta: float = 0.0,
        epsilon: float = 0.2,
        epsilon_high: float | None = 0.28,
        delta: float | None = None,
        kl: KLEstimator | None = None,
    ) -> None:
        """Set the hyper-parameters of `ClippedLoss`; `epsilon_high` is the paper's."""
        super().__init__(beta, epsilon, epsilon_high, delta, kl)
