"""DAPO: the mean over the tokens of the rollout, with more room above than below."""

from grpovi_lightning.losses.clipped import ClippedLoss
from grpovi_lightning.losses.kl import KLEstimator


class DAPOLoss(ClippedLoss):
    """The clipped surrogate with "clip higher", aggregated over tokens (DAPO, arXiv 2503.14476; TRL's default).

    A token weighs the same in every optimiser step on one rollout. Where the rollout is one step, this is `BNPOLoss`
    with another `epsilon_high`. DAPO's dynamic sampling and overlong reward shaping are no part of the loss.
    """

    def __init__(
        self,
        beta: float = 0.0,
        epsilon: float = 0.2,
        epsilon_high: float | None = 0.28,
        delta: float | None = None,
        kl: KLEstimator | None = None,
    ) -> None:
        """Takes the hyper-parameters of `ClippedLoss`; `epsilon_high` is the paper's."""
        super().__init__(beta, epsilon, epsilon_high, delta, kl)
