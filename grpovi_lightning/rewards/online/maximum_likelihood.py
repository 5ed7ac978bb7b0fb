"""The baseline with memory: maximum likelihood, refitted on the whole history in every round."""

import math
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn.functional import logsigmoid

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards.online.directions import slopes, too_large
from grpovi_lightning.rewards.online.estimator import UncertainEstimator, positive

RESOLUTION = 1e-7
"""The tolerance that a search can always meet. Float64 knows the losses to 1e-16 of themselves, thus the place of their
minimum no better than to a gradient of about 1e-8 of its bound: there, a tighter search may find no lower value."""
MAX_ITERATIONS = 10_000
"""Of L-BFGS; a fit takes some tens."""


class MaximumLikelihood(UncertainEstimator):
    """The regularised maximum of the Bradley-Terry likelihood of all comparisons so far.

    theta minimises lam / 2 ||theta||^2 + the sum of the losses of all t pairs, by L-BFGS, so that a round costs
    O(t D) time an iteration and the memory is O(t D): what `OnlineMirrorDescent` saves. H = lam I + the sum of their
    Hessians at theta. It is computed when `inverse` is first read after an update: O(t D^2 + D^3).
    """

    def __init__(self, dim: int, lam: float = 1.0, warm_start: bool = True, tolerance: float = 1e-9) -> None:
        """Takes the settings of the fit.

        Args:
            dim: D, the number of features.
            lam: lambda, the weight of the regularisation and the H of no data.
            warm_start: begin each fit at the last theta, else at 0. The solution is the same to the tolerance.
            tolerance: a fit ends where no entry of the gradient is larger than this share of the sum of the lengths of
                all differences, which the gradient of the losses never exceeds. Where rounding ends it before,
                `RESOLUTION` is accepted too. The default is the minimum for every purpose; a looser fit can predict as
                well in a fraction of the time, and begun at the last theta may stay there.

        Raises:
            UserError: `lam` is not positive and finite, or `tolerance` does not lie between 0 and 1.
        """
        super().__init__(dim)
        positive("lam", lam)
        if not 0.0 < tolerance < 1.0:
            raise UserError(f"tolerance: got {tolerance}, expected a number between 0 and 1, such as 1e-9")
        self.lam, self.warm_start, self.tolerance = lam, warm_start, tolerance
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
        self.theta = fit(self._z[:end], self._y[:end], self.lam, start, length, self.tolerance)
        self._length, self._inverse = length, None

    def _make_room(self, rows: int) -> None:
        if rows > len(self._z):
            room = max(rows, 2 * len(self._z))
            z, y = torch.empty(room, self.dim, dtype=torch.float64), torch.empty(room, dtype=torch.float64)
            z[: self.n_pairs], y[: self.n_pairs] = self._z[: self.n_pairs], self._y[: self.n_pairs]
            self._z, self._y = z, y

    @property
    def settings(self) -> dict[str, float | None]:
        """`lam`; how a fit is searched for changes with the next one."""
        return {"lam": self.lam}

    @property
    def state_bytes(self) -> int:
        """As everywhere, counted without the copy of the history that `state_dict` makes."""
        return self.theta.nbytes + self._z[: self.n_pairs].nbytes + self._y[: self.n_pairs].nbytes

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, but the settings: the history without the room behind it."""
        history = {"z": self._z[: self.n_pairs].clone(), "y": self._y[: self.n_pairs].clone(), "length": self._length}
        return {**super().state_dict(), **history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        super().load_state_dict(state)
        self._z, self._y, self._length = state["z"].clone(), state["y"].clone(), float(state["length"])
        self._inverse = None


def fit(z: Tensor, y: Tensor, lam: float, start: Tensor, length: float, tolerance: float) -> Tensor:
    """The theta that minimises lam / 2 ||theta||^2 + the Bradley-Terry losses.

    Args:
        z: [t, D] feature differences, float64.
        y: [t] labels.
        lam: weight of the regularisation.
        start: [D], where the search begins.
        length: the sum of the lengths of all differences, which the norm of the losses' gradient never exceeds.
        tolerance: the largest entry of the gradient at which the search ends, as a share of `length`.

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

    options = {"ftol": 0.0, "gtol": tolerance * length, "maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS}
    with _one_blas_thread():
        found = minimize(objective, start.numpy(), method="L-BFGS-B", jac=True, options=options)
    left, accepted = np.abs(found.jac).max(), max(tolerance, RESOLUTION) * length
    if not left <= accepted:
        raise TrainingError(
            f"fit on {len(z)} pairs: got a gradient of {left:.3g} after {found.nit} iterations of L-BFGS, expected at "
            f"most {accepted:.3g}; the pairs of this round were not learned. Raise lam, or scale the features down"
        )
    return torch.from_numpy(found.x)


def _one_blas_thread() -> AbstractContextManager:
    """Inside, BLAS has one thread: on L-BFGS's short vectors a second one only waits, and makes a fit far slower."""
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process; found once, which takes milliseconds."""
    return ThreadpoolController()
