"""One pass over the comparisons: online mirror descent (arXiv 2502.07193, Algorithm 1)."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.rewards.online.estimator import UncertainEstimator, positive
from grpovi_lightning.rewards.online.hessian import WoodburyUpdate, residuals, sigmoid_derivative


class MirrorDescent(UncertainEstimator):
    """What explicit and implicit mirror descent share: the inverse Hessian, the projection and the state.

    H starts as lam I. Each round adds its Hessian at the new theta, without eta; only P = H^{-1} is kept. A round of b
    pairs costs O(D^2 b) time and the memory is O(D^2), however many rounds came before.
    """

    kappa: float
    """The largest 1 / (p (1 - p)) so far, p the predicted probability of a pair before its update; at least 4."""

    def __init__(self, dim: int, eta: float = 1.0, lam: float = 1.0, radius: float | None = None) -> None:
        """Start from theta = 0 and H = lam I.

        Args:
            dim: D, the number of features.
            eta: step size. The paper's theory asks for values so small (and a `lam` so large) that theta hardly moves;
                1 keeps up with a refit on the whole history.
            lam: lambda, the weight of the regularisation.
            radius: theta stays in the ball ||theta|| <= radius, the paper's B; None is no bound.

        Raises:
            UserError: a setting is not positive and finite.
        """
        super().__init__(dim)
        for name, value in (("eta", eta), ("lam", lam), ("radius", radius)):
            if value is not None:
                positive(name, value)
        self.eta, self.lam, self.radius = eta, lam, radius
        self.kappa = 4.0
        self.inverse = torch.eye(dim, dtype=torch.float64) / lam

    @abstractmethod
    def _step(self, woodbury: WoodburyUpdate, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the round's estimate without a bound, from its comparisons Z [b, D] and labels [b].

        Returns:
            theta' [D], and the weights w [b] of the look-ahead Hessian H~ = H + Z' diag(w) Z, whose norm it is.
        """

    def _learn(self, z: Tensor, y: Tensor) -> None:
        woodbury = WoodburyUpdate(self.inverse, z)
        theta, weights = self._step(woodbury, y)
        if self.radius is not None and theta.norm() > self.radius:
            theta = project(theta, woodbury.updated_inverse(woodbury.downdate_factor(weights)), self.radius)
        inverse = woodbury.updated_inverse(woodbury.downdate_factor(sigmoid_derivative(z @ theta)))
        steepest = (z @ self.theta).abs().max()
        self.kappa = max(self.kappa, 2.0 + 2.0 * steepest.cosh().item())  # 1 / (p (1 - p)), also where p rounds to 1
        self.theta, self.inverse = theta, inverse

    @property
    def settings(self) -> dict[str, float | None]:
        """`lam`, with which H began, and `radius`, in whose ball theta lies; another `eta` may go on from here."""
        return {"lam": self.lam, "radius": self.radius}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inverse": self.inverse, "kappa": self.kappa}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.inverse, self.kappa = state["inverse"].clone(), float(state["kappa"])


class OnlineMirrorDescent(MirrorDescent):
    """The one-pass estimator of arXiv 2502.07193, Algorithm 1.

    A round with gradient g and Hessian G at theta, sums over its pairs, gives

        H~ = H + eta G,  theta' = theta - eta H~^{-1} g,  theta+ = theta' projected onto the ball in the norm of H~,

    and H grows by the Hessian at theta+. With one pair, q = z' P z, slope s' and prediction p this is theta' = theta -
    eta (p - y) P z / (1 + eta s' q). Departure: the paper has one comparison a round. Several are summed, not averaged,
    so that lam means the same whatever the size of a round.

    One round by hand: at theta = 0, p = 1/2 and s' = 1/4, so theta+ = 0.5 z / (1 + 0.25) = 0.4 z. Then H grows by
    s'(0.4) = 0.2403 along z, and the uncertainty along z falls from 1 to 1 / sqrt(1.2403).

    >>> estimator = OnlineMirrorDescent(dim=2)
    >>> z = torch.tensor([[1.0, 0.0]])
    >>> estimator.update(z, torch.tensor([1]))
    >>> [round(value, 4) for value in estimator.theta.tolist()]
    [0.4, 0.0]
    >>> round(estimator.uncertainty(z).item(), 4)
    0.8979
    """

    def _step(self, woodbury: WoodburyUpdate, y: Tensor) -> tuple[Tensor, Tensor]:
        margins = woodbury.z @ self.theta
        weights = self.eta * sigmoid_derivative(margins)
        factor = woodbury.downdate_factor(weights)
        change = woodbury.solve(factor, woodbury.coordinates(residuals(margins, y)))
        return self.theta - self.eta * change, weights


def project(theta: Tensor, inverse: Tensor, radius: float) -> Tensor:
    """Return the point of the ball that is nearest to theta in the norm of H~ (arXiv 2502.07193, Algorithm 1).

    The minimiser of ||x - theta||^2 in that norm under ||x|| <= radius is x = (I + mu H~^{-1})^{-1} theta, where
    mu >= 0 makes ||x|| = radius. ||x|| falls in mu, so mu is found by bisection, to the last bit.

    >>> [round(value, 4) for value in project(torch.tensor([3.0, 4.0]), torch.eye(2), radius=1.0).tolist()]
    [0.6, 0.8]

    theta [D] lies outside the ball, the result [D] on the sphere to rounding. `inverse` [D, D] is H~^{-1}, symmetric
    and positive definite.
    """
    eigenvalues, vectors = torch.linalg.eigh(inverse)
    eigenvalues.clamp_min_(torch.finfo(torch.float64).eps * eigenvalues[-1].item())  # rounding may leave one below 0
    coordinates = vectors.T @ theta

    def shrunk(mu: float) -> Tensor:
        return coordinates / (1.0 + mu * eigenvalues)

    # If all eigenvalues were the largest (smallest), mu would be `low` (`high`): the root lies between.
    excess = theta.norm().item() / radius - 1.0
    low, high = excess / eigenvalues[-1].item(), excess / eigenvalues[0].item()
    while low < (middle := low + (high - low) / 2.0) < high:
        low, high = (middle, high) if shrunk(middle).norm() > radius else (low, middle)
    return vectors @ shrunk(high)
