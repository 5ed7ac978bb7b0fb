"""The baseline with memory: maximum likelihood, refitted on the whole history in every round."""

import math
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
from grpovi_lightning.rewards.online.estimator import UncertainEstimator, positive
from grpovi_lightning.rewards.online.hessian import sigmoid_derivative, too_large

RESOLUTION = 1e-7
"""The tolerance that every fit can meet. Float64 knows the loss to a share of 1e-16. Near its minimum the loss is
quadratic: once the gradient is below about 1e-8 of its bound, a search may find no lower value and end there."""
MAX_ITERATIONS = 10_000
"""Limit for L-BFGS; a fit takes some tens of iterations."""


class MaximumLikelihood(UncertainEstimator):
    """The regularised maximum of the Bradley-Terry likelihood of all comparisons so far.

    theta minimises lam / 2 ||theta||^2 + the sum of the losses of all t pairs. It is found by L-BFGS, of which an
    iteration takes O(t D) time, and the history takes O(t D) memory; `OnlineMirrorDescent` keeps no history. H = lam I
    + the sum of the pairs' Hessians at theta, computed in O(t D^2 + D^3) when `inverse` is first read after an update.

    The pair z = 1, y = 1 once and twice, with lam = 1: the gradient theta - n (1 - sigmoid(theta)) is 0.

    >>> estimator, z, y = MaximumLikelihood(dim=1), torch.tensor([[1.0]]), torch.tensor([1])
    >>> for n in (1, 2):
    ...     estimator.update(z, y)
    ...     print(round(estimator.theta.item(), 4), round(n * (1 - torch.sigmoid(estimator.theta).item()), 4))
    0.4011 0.4011
    0.6748 0.6748
    """

    def __init__(self, dim: int, lam: float = 1.0, warm_start: bool = True, tolerance: float = 1e-9) -> None:
        """Start from theta = 0 and no pairs.

        Args:
            dim: D, the number of features.
            lam: lambda, the weight of the regularisation.
            warm_start: begin each fit at the last theta instead of at 0. The solution is the same up to the tolerance.
            tolerance: a fit ends where no entry of the gradient is larger than this share of sum ||z|| over all pairs,
                the bound of the losses' gradient. If rounding ends the fit before, `RESOLUTION` is accepted too. The
                default is as good as the exact minimum. A looser fit can predict as well in a fraction of the time, but
                a warm start may then stay where it is.

        Raises:
            UserError: `lam` is not positive and finite, or `tolerance` does not lie between 0 and 1.
        """
        super().__init__(dim)
        positive("lam", lam)
        if not 0.0 < tolerance < 1.0:
            raise UserError(f"tolerance: got {tolerance}, expected a number between 0 and 1, such as 1e-9")
        self.lam, self.warm_start, self.tolerance = lam, warm_start, tolerance
        self._z = torch.empty(0, dim, dtype=torch.float64)
        self._y = torch.empty(0, dtype=torch.float64)
        self._length = 0.0
        self._inverse: Tensor | None = None

    @property
    def inverse(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  made when it is asked for
        """[D, D] float64, H^{-1} at the current theta."""
        if self._inverse is None:
            weights = sigmoid_derivative(self._z @ self.theta)
            hessian = self.lam * torch.eye(self.dim, dtype=torch.float64) + (self._z.T * weights) @ self._z
            self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return self._inverse

    def _learn(self, z: Tensor, y: Tensor) -> None:
        """Refit; raise `TrainingError` if the fit does not converge, and leave the estimator as it was."""
        length = self._length + z.norm(dim=1).sum().item()
        if not math.isfinite(length):
            raise too_large(z)
        # The copy of the history costs less than one iteration of the fit, which reads all of it.
        z, y = torch.cat([self._z, z]), torch.cat([self._y, y])
        start = self.theta if self.warm_start else torch.zeros_like(self.theta)
        self.theta = fit(z, y, self.lam, start, length, self.tolerance)
        self._z, self._y, self._length, self._inverse = z, y, length, None

    @property
    def settings(self) -> dict[str, float | None]:
        """`lam`; the next fit may be searched for in another way."""
        return {"lam": self.lam}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "z": self._z, "y": self._y, "length": self._length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._z, self._y, self._length = state["z"].clone(), state["y"].clone(), float(state["length"])
        self._inverse = None


def fit(z: Tensor, y: Tensor, lam: float, start: Tensor, length: float, tolerance: float) -> Tensor:
    """Return the theta [D] that minimises lam / 2 ||theta||^2 + the Bradley-Terry losses of z [t, D] and labels y [t].

    L-BFGS begins at `start` [D]. It ends where no entry of the gradient is larger than the share `tolerance` of
    `length`, the sum of ||z||, which the norm of the losses' gradient never exceeds. All tensors are float64.

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
    with _blas().limit(limits=1, user_api="blas"):  # on L-BFGS's short vectors a second thread only waits
        found = minimize(objective, start.numpy(), method="L-BFGS-B", jac=True, options=options)
    left, accepted = np.abs(found.jac).max(), max(tolerance, RESOLUTION) * length
    if not left <= accepted:
        raise TrainingError(
            f"fit on {len(z)} pairs: got a gradient of {left:.3g} after {found.nit} iterations of L-BFGS, expected at "
            f"most {accepted:.3g}; the pairs of this round were not learned. Raise lam, or scale the features down"
        )
    return torch.from_numpy(found.x)


@cache
def _blas() -> ThreadpoolController:
    """Find the BLAS libraries of this process; once, because it takes milliseconds."""
    return ThreadpoolController()
