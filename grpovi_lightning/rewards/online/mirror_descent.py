"""One pass over the comparisons: online mirror descent (arXiv 2502.07193, Algorithm 1)."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.rewards.online.directions import Directions, residuals, slopes
from grpovi_lightning.rewards.online.estimator import UncertainEstimator, positive


class MirrorDescent(UncertainEstimator):
    """What explicit and implicit mirror descent share: the inverse Hessian, the projection and the state.

    H starts as lam I. After each round it grows by the round's Hessian at the new theta, without eta; only P = H^{-1}
    is kept. A round costs O(D^2 b) time, and the memory is O(D^2), however many came before.
    """

    kappa: float
    """The largest 1 / (p (1 - p)) so far, p the predicted probability of a pair before its update; at least 4."""

    def __init__(self, dim: int, eta: float = 1.0, lam: float = 1.0, radius: float | None = None) -> None:
        """Takes the settings of the method.

        Args:
            dim: D, the number of features.
            eta: step size. The paper's theory asks for values so small (and a `lam` so large) that theta hardly moves;
                1 keeps up with a refit on the whole history.
            lam: lambda, the H of no data.
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
        self._inverse = torch.eye(dim, dtype=torch.float64) / lam

    @property
    def inverse(self) -> Tensor:
        """[D, D] float64, H^{-1}: exactly symmetric."""
        return self._inverse

    @abstractmethod
    def _step(self, directions: Directions, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where the round leads without a bound, and how the space is measured there.

        Args:
            directions: of the round's b comparisons.
            y: [b] labels.

        Returns:
            theta' [D], and the weights w [b] of the look-ahead Hessian H + Z' diag(w) Z in whose norm theta' is
            projected.
        """

    def _learn(self, z: Tensor, y: Tensor) -> None:
        directions = Directions(self._inverse, z)
        theta, weights = self._step(directions, y)
        if self.radius is not None and theta.norm() > self.radius:
            theta = project(theta, directions.inverse_with(directions.gain(weights)), self.radius)
        inverse = directions.inverse_with(directions.gain(slopes(z @ theta)))
        steepest = (z @ self.theta).abs().max()
        self.kappa = max(self.kappa, 2.0 + 2.0 * steepest.cosh().item())  # 1 / (p (1 - p)), also where p rounds to 1
        self.theta, self._inverse = theta, inverse

    @property
    def settings(self) -> dict[str, float | None]:
        """`lam`, with which H began, and `radius`, in whose ball theta lies; another `eta` may go on from here."""
        return {"lam": self.lam, "radius": self.radius}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, but the settings; the tensors are never written to."""
        return {**super().state_dict(), "inverse": self._inverse, "kappa": self.kappa}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, under the same settings to the last bit."""
        super().load_state_dict(state)
        self._inverse, self.kappa = state["inverse"].clone(), float(state["kappa"])


class OnlineMirrorDescent(MirrorDescent):
    """The one-pass estimator of arXiv 2502.07193, Algorithm 1.

    A round with gradient g and Hessian G at theta, sums over its pairs, gives

        H~ = H + eta G,  theta' = theta - eta H~^{-1} g,  theta+ = theta' projected onto the ball in the norm of H~,

    and H grows by the Hessian at theta+. With one pair, q = z' P z, slope s' and prediction p this is theta' = theta -
    eta (p - y) P z / (1 + eta s' q). Departure: the paper has one comparison a round. Several are summed, not averaged,
    so that lam means the same whatever the size of a round.
    """

    def _step(self, directions: Directions, y: Tensor) -> tuple[Tensor, Tensor]:
        margins = directions.z @ self.theta
        weights = self.eta * slopes(margins)
        change = directions.solve(directions.gain(weights), directions.reduced(residuals(margins, y)))
        return self.theta - self.eta * change, weights


def project(theta: Tensor, inverse: Tensor, radius: float) -> Tensor:
    """The point of the ball that is nearest to theta in the norm of H~.

    The minimiser of ||x - theta||^2 in that norm under ||x|| <= radius is x = (I + mu H~^{-1})^{-1} theta, where
    mu >= 0 makes ||x|| = radius; ||x|| falls in mu, so mu is found by bisection, to the last bit.

    Args:
        theta: [D], outside the ball.
        inverse: [D, D], H~^{-1}, symmetric and positive definite.
        radius: of the ball, positive.

    Returns:
        [D], on the sphere to rounding.
    """
    eigenvalues, vectors = torch.linalg.eigh(inverse)
    eigenvalues.clamp_min_(torch.finfo(torch.float64).eps * eigenvalues[-1].item())  # rounding may leave one below 0
    coordinates = vectors.T @ theta

    def shrunk(mu: float) -> Tensor:
        return coordinates / (1.0 + mu * eigenvalues)

    # If all eigenvalues were the largest (smallest), mu would be `low` (`high`).
    excess = theta.norm().item() / radius - 1.0
    low, high = excess / eigenvalues[-1].item(), excess / eigenvalues[0].item()
    while low < (middle := low + (high - low) / 2.0) < high:
        low, high = (middle, high) if shrunk(middle).norm() > radius else (low, middle)
    return vectors @ shrunk(high)
