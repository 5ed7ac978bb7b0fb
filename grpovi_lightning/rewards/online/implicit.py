"""One pass with the true loss of each round in place of its second-order model."""

import torch
from torch import Tensor

from grpovi_lightning.rewards.online.hessian import WoodburyUpdate, residuals, sigmoid_derivative
from grpovi_lightning.rewards.online.mirror_descent import MirrorDescent

ROUNDING = torch.finfo(torch.float64).eps
"""Newton's method has converged where its residual is no larger than this share of the coefficients."""
HALVINGS = 50
"""Of a Newton step. If none of them brings the residual down, only rounding is left of it."""


class ImplicitMirrorDescent(MirrorDescent):
    """One pass of theta+ = argmin of the round's loss + ||theta - theta_t||^2 / (2 eta), in the norm of H.

    The costlier update that arXiv 2502.07193 replaces by a second-order model (`OnlineMirrorDescent`). Here the loss is
    the true one and the minimum is exact. It has the form theta_t - eta P Z' (sigmoid(m) - y), so that only the b
    margins m = Z theta are unknown: m = m_t - eta K (sigmoid(m) - y), K = Z P Z'.

    Departure: under a `radius` the objective is not minimised over the ball. Its minimum over the whole space is
    projected onto the ball, in the norm of eta times the objective's Hessian at that minimum.

    One pair with z = 1 and lam = 1: theta = 1 - sigmoid(theta), also the maximum of the regularised likelihood.

    >>> estimator = ImplicitMirrorDescent(dim=1)
    >>> estimator.update(torch.tensor([[1.0]]), torch.tensor([1]))
    >>> round(estimator.theta.item(), 4), round(1 - torch.sigmoid(estimator.theta).item(), 4)
    (0.4011, 0.4011)
    """

    def _step(self, woodbury: WoodburyUpdate, y: Tensor) -> tuple[Tensor, Tensor]:
        margins = woodbury.z @ self.theta
        coefficients = self._coefficients(woodbury, margins, y)
        theta = self.theta + woodbury.p_r @ coefficients
        return theta, self.eta * sigmoid_derivative(margins + woodbury.margin_changes(coefficients))

    def _coefficients(self, woodbury: WoodburyUpdate, start: Tensor, y: Tensor) -> Tensor:
        """Return the root c of c + eta Q' (sigmoid(m(c)) - y), with m(c) = start + Z P R' c: [k].

        Newton's method; each step is halved until the norm of the residual falls. The Jacobian I + eta (Q' diag(s') Q)
        (R P R') has the eigenvalues of I plus a positive semi-definite matrix, so it is never singular. A short
        enough step therefore brings the norm down as long as there is more than rounding left.
        """

        def residual(coefficients: Tensor) -> tuple[Tensor, Tensor]:
            margins = start + woodbury.margin_changes(coefficients)
            return coefficients + self.eta * woodbury.coordinates(residuals(margins, y)), margins

        coefficients = torch.zeros(len(woodbury.gram), dtype=torch.float64)
        value, margins = residual(coefficients)
        while value.norm() > ROUNDING * coefficients.norm():
            jacobian = self.eta * woodbury.weight_matrix(sigmoid_derivative(margins)) @ woodbury.gram
            jacobian.diagonal().add_(1.0)
            step = torch.linalg.solve(jacobian, value)
            for halving in range(HALVINGS):
                candidate = coefficients - step * 0.5**halving
                new, new_margins = residual(candidate)
                if new.norm() < value.norm():
                    break
            else:
                break
            coefficients, value, margins = candidate, new, new_margins
        return coefficients
