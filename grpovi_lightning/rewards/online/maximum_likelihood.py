"""The baseline with memory: maximum likelihood, refitted on the whole history in every round."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import logsigmoid

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.rewards.online.directions import slopes, too_large
from grpovi_lightning.rewards.online.estimator import UncertainEstimator, positive

AIM, ACCEPTED = 1e-9, 1e-7
"""The largest entry of the gradient at the solution, in units of the sum of the lengths of all differences. L-BFGS
stops at the first; the second is what may be left where rounding ends its search before that."""


class MaximumLikelihood(UncertainEstimator):
    """The regularised maximum of the Bradley-Terry likelihood of all comparisons so far.

    theta minimises lam / 2 ||theta||^2 + the sum of the losses of all t pairs, by L-BFGS, so that a round costs
    O(t D) time an iteration and the memory is O(t D): what `OnlineMirrorDescent` saves. H = lam I + the sum of their
    Hessians at theta. It is computed when `inverse` is first read after an update: O(t D^2 + D^3).
    """

    def __init__(self, dim: int, lam: float = 1.0, warm_start: bool = True) -> None:
        """Takes the settings of the fit.

        Args:
            dim: D, the number of features.
            lam: lambda, the weight of the regularisation and the H of no data.
            warm_start: begin each fit at the last theta, else at 0. The solution is the same to the tolerance.

        Raises:
            UserError: `lam` is not positive and finite.
        """
        super().__init__(dim)
        positive("lam", lam)
        self.lam, self.warm_start = lam, warm_start
        # The first `n_pairs` rows are the history. The room doubles when it is full.
        self._z = torch.empty(0, dim, dtype=torch.float64)
        self._y = torch.empty(0, dtype=torch.float64)
        self._length = 0.0
        self._inverse: Tensor | None = None

    @property
    def inverse(self) -> Tensor:
        """[D, D] float64, H^{-1} at the current theta."""
        if self._inverse is None:
            z = self._z[: self.n_pairs]
            hessian = self.lam * torch.eye(self.dim, dtype=torch.float64) + (z.T * slopes(z @ self.theta)) @ z
            self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return self._inverse

    def _learn(self, z: Tensor, y: Tensor) -> None:
        """As `update`; a fit that does not converge is a `TrainingError`, and nothing has changed."""
        length = self._length + z.norm(dim=1).sum().item()
        if not math.isfinite(length):
            raise too_large(z)
        end = self.n_pairs + len(z)
        self._make_room(end)
        self._z[self.n_pairs : end], self._y[self.n_pairs : end] = z, y
        start = self.theta if self.warm_start else torch.zeros_like(self.theta)
        self.theta = fit(self._z[:end], self._y[:end], self.lam, start, length)
        self._length, self._inverse = length, None

    def _make_room(self, rows: int) -> None:
        if rows > len(self._z):
            room = max(rows, 2 * len(self._z))
            z, y = torch.empty(room, self.dim, dtype=torch.float64), torch.empty(room, dtype=torch.float64)
            z[: self.n_pairs], y[: self.n_pairs] = self._z[: self.n_pairs], self._y[: self.n_pairs]
            self._z, self._y = z, y

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, but the settings: the history without the room behind it."""
        history = {"z": self._z[: self.n_pairs].clone(), "y": self._y[: self.n_pairs].clone(), "length": self._length}
        return {**super().state_dict(), **history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        super().load_state_dict(state)
        self._z, self._y, self._length = state["z"].clone(), state["y"].clone(), float(state["length"])
        self._inverse = None


def fit(z: Tensor, y: Tensor, lam: float, start: Tensor, length: float) -> Tensor:
    """The theta that minimises lam / 2 ||theta||^2 + the Bradley-Terry losses.

    Args:
        z: [t, D] feature differences, float64.
        y: [t] labels.
        lam: weight of the regularisation.
        start: [D], where the search begins.
        length: the sum of the lengths of all differences, which the norm of the losses' gradient never exceeds.

    Returns:
        [D] float64.

    Raises:
        TrainingError: the gradient at the end of the search is not small.
    """
    signs = 2.0 * y - 1.0

    def objective(numbers: NDArray) -> tuple[float, NDArray]:
        theta = torch.from_numpy(numbers)
        signed = signs * (z @ theta)
        loss = 0.5 * lam * (theta @ theta) - logsigmoid(signed).sum()
        return loss.item(), (lam * theta - (signs * torch.sigmoid(-signed)) @ z).numpy()

    options = {"ftol": 0.0, "gtol": AIM * length, "maxiter": 10_000, "maxfun": 20_000}
    found = minimize(objective, start.numpy(), method="L-BFGS-B", jac=True, options=options)
    left = np.abs(found.jac).max()
    if not left <= ACCEPTED * length:
        raise TrainingError(
            f"fit on {len(z)} pairs: got a gradient of {left:.3g} after {found.nit} iterations of L-BFGS, expected at "
            f"most {ACCEPTED * length:.3g}; the pairs of this round were not learned. Raise lam, or scale the features "
            "down"
        )
    return torch.from_numpy(found.x)
