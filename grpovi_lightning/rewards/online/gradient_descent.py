"""One pass by plain stochastic gradient descent: the baseline without a Hessian."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.online.directions import residuals
from grpovi_lightning.rewards.online.estimator import PreferenceEstimator, positive


class Rate(ABC):
    """The step size of each round."""

    @abstractmethod
    def at(self, round_number: int) -> float:
        """The step size of a round; the first has number 1."""


@dataclass(frozen=True)
class ConstantRate(Rate):
    """`rate` in every round.

    Raises:
        UserError: it is not positive and finite.
    """

    rate: float

    def __post_init__(self) -> None:
        """Checks the rate."""
        positive("rate", self.rate)

    def at(self, round_number: int) -> float:
        """The same for all rounds."""
        return self.rate


@dataclass(frozen=True)
class InverseSquareRootRate(Rate):
    """`rate` / sqrt(t) in round t.

    Raises:
        UserError: `rate` is not positive and finite.
    """

    rate: float

    def __post_init__(self) -> None:
        """Checks the rate."""
        positive("rate", self.rate)

    def at(self, round_number: int) -> float:
        """Falls with the square root of the number of rounds, not of pairs."""
        return self.rate / round_number**0.5


class StochasticGradientDescent(PreferenceEstimator):
    """One pass of theta+ = theta - rate(t) g, without regularisation; it keeps theta and the number of rounds.

    g is the sum of the gradients of the pairs of round t, as in the other estimators, and not their mean.
    """

    def __init__(self, dim: int, rate: Rate) -> None:
        """Takes D, the number of features, and the step sizes."""
        super().__init__(dim)
        self.rate = rate
        self.n_rounds = 0

    def _learn(self, z: Tensor, y: Tensor) -> None:
        rate = self.rate.at(self.n_rounds + 1)
        theta = self.theta - rate * (residuals(z @ self.theta, y) @ z)
        if not theta.isfinite().all():
            raise UserError(
                f"round {self.n_rounds + 1}: got a theta that is not finite with rate {rate:.3g}; lower the rate, or "
                "scale the features down"
            )
        self.theta, self.n_rounds = theta, self.n_rounds + 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, but the step sizes."""
        return {**super().state_dict(), "n_rounds": self.n_rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        super().load_state_dict(state)
        self.n_rounds = int(state["n_rounds"])
