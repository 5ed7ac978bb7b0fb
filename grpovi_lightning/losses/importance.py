"""Corrections for a sampler that does not compute quite the policy that is trained."""

from abc import ABC, abstractmethod

from torch import Tensor

from grpovi_lightning.errors import UserError


class ImportanceSampling(ABC):
    """How much each sampled token counts: pi_trainer / pi_sampler, tamed in some way."""

    @abstractmethod
    def __call__(self, log_ratio: Tensor) -> Tensor:
        """Return the factors [B, T] for log-probabilities in the trainer minus those in the sampler; 0 where masked."""


class TruncatedImportanceSampling(ImportanceSampling):
    """min(pi_trainer / pi_sampler, cap) for each token: TRL's token truncation.

    Sampling in lower precision, or with another implementation of the model, draws from a slightly different policy.
    Without a correction the gradient is biased by that difference; without the cap single tokens could dominate it
    (F. Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025).

    >>> import torch
    >>> TruncatedImportanceSampling(cap=2.0)(torch.tensor([[0.0, 3.0]])).tolist()
    [[1.0, 2.0]]
    """

    def __init__(self, cap: float = 2.0) -> None:
        """Set the cap.

        Args:
            cap: the largest factor, at least 1.
        """
        if not 1.0 <= cap < float("inf"):
            raise UserError(f"importance sampling cap: got {cap}, expected a finite number of at least 1")
        self.cap = cap

    def __call__(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.exp().clamp(max=self.cap)
