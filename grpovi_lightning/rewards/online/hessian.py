"""Gradient and Hessian of a round of comparisons, and the inverse of the Hessian after it."""

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError


def residuals(margins: Tensor, y: Tensor) -> Tensor:
    """Return sigmoid(margin) - y; times z it is the gradient of a pair's loss: [b], labels [b] -> [b].

    Small residuals keep their full relative precision, where the difference would round to 0:

    >>> [f"{r:.4g}" for r in residuals(torch.tensor([0.0, 50.0]), torch.tensor([0.0, 1.0])).tolist()]
    ['0.5', '-1.929e-22']
    """
    signs = 1.0 - 2.0 * y
    return signs * torch.sigmoid(signs * margins)


def sigmoid_derivative(margins: Tensor) -> Tensor:
    """Return s (1 - s), s = sigmoid(margin), the weight of z z' in a pair's Hessian: [b] -> [b].

    Full relative precision also where s rounds to 1.
    """
    return torch.sigmoid(margins) * torch.sigmoid(-margins)


class WoodburyUpdate:
    """Updates P = H^{-1} [D, D] by the b comparisons Z [b, D] of one round, for any weights of them.

    (H + Z' diag(w) Z)^{-1} = P - A A' (Woodbury), with A = P Z' S L^{-T}, S = diag(w)^{1/2} and L the Cholesky factor
    of I + S Z P Z' S. With P known this costs O(D^2 b), and P Z' is shared by all weights w.

    More comparisons than features are first written as Z = Q R with orthonormal columns in Q [b, D]. R then takes the
    place of Z, exactly, so that no matrix is wider than D. Otherwise R is Z. Below, k = min(b, D).

    >>> update = WoodburyUpdate(torch.eye(1), torch.tensor([[2.0]]))
    >>> factor = update.downdate_factor(torch.tensor([0.25]))
    >>> round(update.updated_inverse(factor).item(), 6)  # H was 1 and is now 1 + 0.25 * 2 * 2
    0.5
    """

    def __init__(self, inverse: Tensor, z: Tensor) -> None:
        """Multiply P = `inverse` and Z = `z`, both float64.

        Raises:
            UserError: Z P Z' overflows.
        """
        self.inverse, self.z = inverse, z
        self.q_factor, self.r_factor = torch.linalg.qr(z) if len(z) > len(inverse) else (None, z)
        self.p_r = inverse @ self.r_factor.T
        """[D, k], P R'."""
        self.gram = self.r_factor @ self.p_r
        """[k, k], R P R'; its diagonal has the squared uncertainties z' P z where R is Z."""
        if not self.gram.isfinite().all():
            raise too_large(z)

    def coordinates(self, values: Tensor) -> Tensor:
        """Return Q' values, with which Z' values = R' Q' values: [b] -> [k]."""
        return values if self.q_factor is None else self.q_factor.T @ values

    def margin_changes(self, coefficients: Tensor) -> Tensor:
        """Return Z P R' coefficients, how the margins Z theta change with theta + P R' coefficients: [k] -> [b]."""
        product = self.gram @ coefficients
        return product if self.q_factor is None else self.q_factor @ product

    def weight_matrix(self, weights: Tensor) -> Tensor:
        """Return Q' diag(weights) Q: [b] -> [k, k]."""
        return weights.diag() if self.q_factor is None else (self.q_factor.T * weights) @ self.q_factor

    def downdate_factor(self, weights: Tensor) -> Tensor:
        """Return A with (H + Z' diag(weights) Z)^{-1} = P - A A': [b], none negative -> [D, k].

        Raises:
            UserError: the comparisons are so large that rounding hides H beside them.
        """
        roots = weights.sqrt()
        if len(self.gram) == 1 and self.q_factor is None:  # one pair: Sherman-Morrison, without a factorisation
            return self.p_r * (roots / (1.0 + weights * self.gram[0]).sqrt())
        if self.q_factor is None:
            p_r, gram = self.p_r * roots, roots[:, None] * self.gram * roots
        else:
            root = torch.linalg.qr(roots[:, None] * self.q_factor, mode="r").R
            p_r, gram = self.p_r @ root.T, root @ self.gram @ root.T
        gram.diagonal().add_(1.0)
        cholesky, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            raise too_large(self.z)
        return torch.linalg.solve_triangular(cholesky, p_r.T, upper=False).T

    def solve(self, factor: Tensor, coefficients: Tensor) -> Tensor:
        """Return (H + Z' diag(w) Z)^{-1} R' coefficients, with the downdate factor of w: [k] -> [D]."""
        return self.p_r @ coefficients - factor @ (factor.T @ (self.r_factor.T @ coefficients))

    def updated_inverse(self, factor: Tensor) -> Tensor:
        """Return (H + Z' diag(w) Z)^{-1}, with the downdate factor of w: exactly symmetric, [D, D]."""
        if factor.shape[1] == 1:
            # Products of two numbers commute, so the outer product is symmetric as it is.
            return torch.addr(self.inverse, factor[:, 0], factor[:, 0], alpha=-1)
        # BLAS may round A A' differently above and below the diagonal: half of it, plus its own transpose.
        half = torch.addmm(self.inverse, factor, factor.T, beta=0.5, alpha=-0.5)
        return half + half.T


def too_large(z: Tensor) -> UserError:
    """Return the error for comparisons [b, D] beside which float64 loses the Hessian."""
    return UserError(
        f"feature differences: got norms up to {z.norm(dim=1).max().item():.3g}, too large for float64 beside lam; "
        "scale the features down, or raise lam"
    )
