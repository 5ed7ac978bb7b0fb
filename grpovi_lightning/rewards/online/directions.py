"""What a round of comparisons adds to a Hessian, on the side of its inverse."""

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError


def residuals(margins: Tensor, y: Tensor) -> Tensor:
    """sigmoid(margin) - y, to full relative precision also where they nearly agree: [b], [b] labels -> [b]."""
    signs = 1.0 - 2.0 * y
    return signs * torch.sigmoid(signs * margins)


def slopes(margins: Tensor) -> Tensor:
    """The derivative of the sigmoid, s (1 - s), to full relative precision: [b] -> [b]."""
    return torch.sigmoid(margins) * torch.sigmoid(-margins)


class Directions:
    """The directions Z [b, D] of one round beside P = H^{-1} [D, D].

    H + Z' diag(w) Z, with P known, costs O(D^2 b): (H + Z' diag(w) Z)^{-1} = P - A A' (Woodbury), A = P Z' S L^{-T},
    S = diag(w)^{1/2}, L the Cholesky factor of I + S Z P Z' S. P Z' is shared by all weights w. More directions than
    features are first written as Z = U R, U [b, D] with orthonormal columns, and R takes the place of Z: exact, and
    never more than D wide. Below, k = min(b, D).
    """

    def __init__(self, inverse: Tensor, z: Tensor) -> None:
        """Takes P and Z, float64.

        Raises:
            UserError: Z P Z' overflows.
        """
        self.inverse, self.z = inverse, z
        self.mix, self.basis = torch.linalg.qr(z) if len(z) > len(inverse) else (None, z)
        self.spread = inverse @ self.basis.T
        """[D, k], P R'."""
        self.gram = self.basis @ self.spread
        """[k, k], R P R'."""
        if not self.gram.isfinite().all():
            raise too_large(z)

    def reduced(self, values: Tensor) -> Tensor:
        """U' values: [b] -> [k], so that Z' values = R' U' values."""
        return values if self.mix is None else self.mix.T @ values

    def margins(self, coefficients: Tensor) -> Tensor:
        """Z P R' coefficients: [k] -> [b]."""
        product = self.gram @ coefficients
        return product if self.mix is None else self.mix @ product

    def weighted(self, weights: Tensor) -> Tensor:
        """U' diag(weights) U: [b] -> [k, k]."""
        return weights.diag() if self.mix is None else (self.mix.T * weights) @ self.mix

    def gain(self, weights: Tensor) -> Tensor:
        """A with (H + Z' diag(weights) Z)^{-1} = P - A A': [b], none negative -> [D, k].

        Raises:
            UserError: the directions are so large that rounding hides H beside them.
        """
        roots = weights.sqrt()
        if len(self.gram) == 1 and self.mix is None:
            return self.spread * (roots / (1.0 + weights * self.gram[0]).sqrt())
        if self.mix is None:
            spread, gram = self.spread * roots, roots[:, None] * self.gram * roots
        else:
            root = torch.linalg.qr(roots[:, None] * self.mix, mode="r").R
            spread, gram = self.spread @ root.T, root @ self.gram @ root.T
        gram.diagonal().add_(1.0)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            raise too_large(self.z)
        return torch.linalg.solve_triangular(factor, spread.T, upper=False).T

    def solve(self, gain: Tensor, coefficients: Tensor) -> Tensor:
        """(H + Z' diag(w) Z)^{-1} R' coefficients, with the gain of w: [k] -> [D]."""
        return self.spread @ coefficients - gain @ (gain.T @ (self.basis.T @ coefficients))

    def inverse_with(self, gain: Tensor) -> Tensor:
        """(H + Z' diag(w) Z)^{-1}, with the gain of w: exactly symmetric, [D, D]."""
        if gain.shape[1] == 1:
            return torch.addr(self.inverse, gain[:, 0], gain[:, 0], alpha=-1)  # products commute: symmetric as it is
        half = torch.addmm(self.inverse, gain, gain.T, beta=0.5, alpha=-0.5)
        return half + half.T


def too_large(z: Tensor) -> UserError:
    """The error of directions beside which float64 loses the Hessian."""
    return UserError(
        f"feature differences: got norms up to {z.norm(dim=1).max().item():.3g}, too large for float64 beside lam; "
        "scale the features down, or raise lam"
    )
