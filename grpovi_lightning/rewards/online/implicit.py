"""One pass with the true loss of each round in place of its second-order model."""

import torch
from torch import Tensor

from grpovi_lightning.rewards.online.directions import Directions, residuals, slopes
from grpovi_lightning.rewards.online.mirror_descent import MirrorDescent

ROUNDING = torch.finfo(torch.float64).eps
"""A residual that is no larger, beside the coefficients, is rounding."""
HALVINGS = 50
"""Of a Newton step; where none of them brings the residual down, it is rounding too."""


class ImplicitMirrorDescent(MirrorDescent):
    """One pass of theta+ = argmin of the round's loss + ||theta - theta_t||^2 / (2 eta), in the norm of H.

    The costlier update that arXiv 2502.07193 replaces by a second-order model (`OnlineMirrorDescent`); here the loss is
    the true one and the minimum exact. It has the form theta_t - eta P Z' (sigmoid(m) - y), so that only the b margins
    m = Z theta are unknown: m = m_t - eta Q (sigmoid(m) - y), Q = Z P Z'. Departure: under a `radius` the minimum over
    the whole space is projected, in the norm of the objective's Hessian at it times eta; the objective is not minimised
    over the ball.
    """

    def _step(self, directions: Directions, y: Tensor) -> tuple[Tensor, Tensor]:
        margins = directions.z @ self.theta
        coefficients = self._coefficients(directions, margins, y)
        theta = self.theta + directions.spread @ coefficients
        return theta, self.eta * slopes(margins + directions.margins(coefficients))

    def _coefficients(self, directions: Directions, start: Tensor, y: Tensor) -> Tensor:
        """The root c of c + eta U' (sigmoid(m(c)) - y), m(c) = start + U Q c: [k].

        Newton's steps, halved until the norm of the residual falls. The Jacobian I + eta U' diag(s') U Q is similar to
        I plus a positive semi-definite matrix, thus never singular, so that a short enough step always brings the norm
        down until only rounding is left.
        """

        def residual(coefficients: Tensor) -> tuple[Tensor, Tensor]:
            margins = start + directions.margins(coefficients)
            return coefficients + self.eta * directions.reduced(residuals(margins, y)), margins

        coefficients = torch.zeros(len(directions.gram), dtype=torch.float64)
        value, margins = residual(coefficients)
        while value.norm() > ROUNDING * coefficients.norm():
            jacobian = self.eta * directions.weighted(slopes(margins)) @ directions.gram
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
