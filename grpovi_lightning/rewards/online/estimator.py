"""The contract of an estimator that learns a linear reward from comparisons as they arrive."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError


def positive(name: str, value: float) -> None:
    """Raise `UserError` for a setting that is not positive and finite."""
    if not (math.isfinite(value) and value > 0.0):
        raise UserError(f"{name}: got {value}, expected a positive, finite number")


class PreferenceEstimator(ABC):
    """Learns theta of the Bradley-Terry model P(y = 1) = sigmoid(z' theta) (arXiv 2502.07193, Section 3).

    z = phi(x, a) - phi(x, a') is the difference of the features of two completions of one prompt. y = 1 says that the
    first was preferred, y = 0 the second. The reward of a completion is phi' theta. All state is float64, on the CPU.
    """

    theta: Tensor
    """[D] float64, the current estimate; 0 before the first update."""

    def __init__(self, dim: int) -> None:
        """Start from theta = 0.

        Args:
            dim: D, the number of features.

        Raises:
            UserError: `dim` is below 1.
        """
        if dim < 1:
            raise UserError(f"estimator dim: got {dim}, expected at least 1, the number of features")
        self.dim = dim
        self.n_pairs = 0
        self.theta = torch.zeros(dim, dtype=torch.float64)

    def update(self, z: Tensor, y: Tensor) -> None:
        """Learn from one round of comparisons.

        Args:
            z: [b, D] feature differences, any float dtype, or [D] for one comparison.
            y: [b] labels, 0 or 1, or a scalar.

        Raises:
            UserError: `z` is not of width D, a label is not 0 or 1, or a number is not finite; nothing has changed.
        """
        z, y = self._checked(z, y)
        if len(z):
            self._learn(z, y)
            self.n_pairs += len(z)

    @abstractmethod
    def _learn(self, z: Tensor, y: Tensor) -> None:
        """Change `theta` by [b, D] float64 differences and [b] float64 labels, b at least 1."""

    def _checked(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the comparisons as [b, D] and [b] float64 on the CPU, or raise what `update` raises."""
        y = torch.atleast_1d(torch.as_tensor(y)).detach().to("cpu", torch.float64)
        z = torch.atleast_2d(torch.as_tensor(z)).detach().to("cpu", torch.float64)
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise UserError(
                f"feature differences: got shape {tuple(z.shape)}, expected (pairs, {self.dim}); use the features that "
                "the estimator was made for"
            )
        if y.shape != z.shape[:1]:
            raise UserError(f"labels: got shape {tuple(y.shape)}, expected ({len(z)},), one for each pair")
        wrong = ((y != 0.0) & (y != 1.0)).nonzero().flatten().tolist()
        if wrong:
            raise UserError(
                f"label of pair {wrong[0]}: got {y[wrong[0]].item()}, expected 1 (the first is preferred) or 0; leave "
                "out ties and missing answers"
            )
        infinite = (~z.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if infinite:
            raise UserError(
                f"feature differences of pair {infinite[0]}: got a value that is not finite; look at the feature model "
                "and its dtype"
            )
        return z, y

    def reward(self, features: Tensor) -> Tensor:
        """Return the reward phi' theta: [..., D] -> [...] float64 on the CPU."""
        return features.detach().to("cpu", torch.float64) @ self.theta

    @property
    def settings(self) -> dict[str, float | None]:
        """The settings on which the state depends: it is of no use to an estimator with others.

        Settings that only later rounds depend on, such as step sizes, are not among them. A subclass adds its own.
        """
        return {}

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensors that the estimator keeps between rounds."""
        return sum(value.nbytes for value in self.state_dict().values() if isinstance(value, Tensor))

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next update depends on but settings: tensors and numbers, safe with `weights_only`."""
        return {"theta": self.theta, "n_pairs": self.n_pairs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken. The caller makes sure that the `settings` are the same.

        Raises:
            UserError: the state is of another kind of estimator, or of another number of features; nothing has changed.
        """
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise UserError(
                f"estimator state: got {', '.join(state)}, expected {', '.join(expected)}; it belongs to "
                "another estimator"
            )
        if state["theta"].shape != (self.dim,):
            raise UserError(
                f"estimator state: got {len(state['theta'])} features, expected {self.dim}; it belongs to other "
                "features"
            )
        self.theta, self.n_pairs = state["theta"].clone(), int(state["n_pairs"])


class UncertainEstimator(PreferenceEstimator):
    """An estimator that also knows how sure it is in each direction, by the inverse of the Hessian H of its loss."""

    inverse: Tensor
    """[D, D] float64, H^{-1}, symmetric."""

    def uncertainty(self, z: Tensor) -> Tensor:
        """Return ||z|| in the norm of H^{-1}, which the paper's active queries maximise: [..., D] -> [...] float64."""
        z = z.detach().to("cpu", torch.float64)
        return ((z @ self.inverse) * z).sum(dim=-1).clamp_min(0.0).sqrt()

    def pessimistic(self, features: Tensor, beta: float) -> Tensor:
        """Return phi' theta - beta ||phi|| in the norm of H^{-1}, the paper's passive setting: [..., D] -> [...]."""
        return self.reward(features) - beta * self.uncertainty(features)
