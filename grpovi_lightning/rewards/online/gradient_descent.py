"""One pass by plain stochastic gradient descent: the baseline without a Hessian."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.online.estimator import PreferenceEstimator, positive
from grpovi_lightning.rewards.online.hessian import residuals


class Rate(ABC):
    """The step size of each round.

    Raises:
        UserError: `rate` is not positive and finite.
    """

    def __init__(self, rate: float) -> None:
        positive("rate", rate)
        self.rate = rate

    @abstractmethod
    def at(self, round_number: int) -> float:
        """Return the step size of a round; the first has number 1."""


class ConstantRate(Rate):
    """`rate` in every round."""

    def at(self, round_number: int) -> float:
        return self.rate


class InverseSquareRootRate(Rate):
    """`rate` / sqrt(t) in round t; t counts rounds, not pairs.

    >>> [InverseSquareRootRate(0.5).at(t) for t in (1, 4, 25)]
    [0.5, 0.25, 0.1]
    """

    def at(self, round_number: int) -> float:
        return self.rate / round_number**0.5


class StochasticGradientDescent(PreferenceEstimator):
    """One pass of theta+ = theta - rate(t) g, without regularisation; it keeps theta and the number of rounds.

    g is the sum of the gradients of the pairs of round t, as in the other estimators, not their mean. At theta = 0 a
    pair has the gradient (1/2 - y) z:

    >>> import torch
    >>> estimator = StochasticGradientDescent(dim=2, rate=ConstantRate(0.1))
    >>> estimator.update(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([1, 0]))
    >>> [round(value, 4) for value in estimator.theta.tolist()]
    [0.05, -0.1]
    """

    def __init__(self, dim: int, rate: Rate) -> None:
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
        return {**super().state_dict(), "n_rounds": self.n_rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.n_rounds = int(state["n_rounds"])
