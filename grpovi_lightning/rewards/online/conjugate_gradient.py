"""A few steps of the conjugate gradient method for a matrix that is known by its products only."""

from collections.abc import Callable
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from grpovi_lightning.errors import TrainingError


class ConjugateGradient(NamedTuple):
    """Where the iteration ended."""

    solution: Tensor
    """[N], x with A x ~ b, in b's dtype."""
    negative_curvature: bool
    """Whether it met a direction d with d' A d <= 0, which shows that A is not positive definite."""


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], gradient: Tensor, n_steps: int, floor: float
) -> ConjugateGradient:
    """Take at most `n_steps` steps of conjugate gradient for A x = b from x = 0 (Hestenes and Stiefel, 1952).

    For a positive definite A, step k minimises (x - A^{-1} b)' A (x - A^{-1} b) over span{b, A b, ..., A^{k-1} b}, and
    N steps solve the system. The iteration ends earlier once the residual is zero up to rounding.

    >>> matrix, b = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
    >>> found = conjugate_gradient(matrix.mv, b, n_steps=2, floor=0.1)
    >>> [round(value, 4) for value in found.solution.tolist()]  # 1/11 and 7/11
    [0.0909, 0.6364]

    Where a direction d has d' A d <= 0 there is no such minimum. The iteration then ends at its current x, as in
    line-search Newton-CG (Nocedal and Wright, 2006, Algorithm 7.1). If d is the first direction, b, it ends at x = b /
    max(|b' A b| / b' b, floor), as if the curvature along b had the other sign. Either way -x is a descent direction of
    a function with gradient b. Departure: for the first direction the book ends at b and leaves the length to a line
    search. Without one, b would not do: it grows with the scale of the function, unlike a step over the curvature.

    Args:
        product: v [N] -> A v [N], A symmetric.
        gradient: b [N], float32 or float64. Inner products are taken in float64.
        n_steps: K, at least 1.
        floor: the least curvature that a first direction of negative curvature is divided by, positive.

    Raises:
        TrainingError: b or a product is not finite.
    """
    solution, residual, direction = torch.zeros_like(gradient), gradient.clone(), gradient.clone()
    squared = _finite("squared gradient norm", _inner(gradient, gradient))
    zero = torch.finfo(gradient.dtype).eps ** 2 * squared
    for step in range(n_steps):
        if squared <= zero:
            return ConjugateGradient(solution, False)
        image = product(direction)
        curvature = _finite("curvature along the direction", _inner(direction, image))
        if curvature <= 0.0:
            end = solution if step else gradient / max(-curvature / squared, floor)
            return ConjugateGradient(end, True)
        length = squared / curvature
        solution.add_(direction, alpha=length)
        residual.sub_(image, alpha=length)
        before, squared = squared, _inner(residual, residual)
        direction.mul_(squared / before).add_(residual)
    return ConjugateGradient(solution, False)


def _inner(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first.double(), second.double()))


def _finite(name: str, value: float) -> float:
    if not isfinite(value):
        raise TrainingError(
            f"conjugate gradient: {name} is {value}, expected a finite number; the update was not made, look at the "
            "loss of this batch or lower the learning rate"
        )
    return value
