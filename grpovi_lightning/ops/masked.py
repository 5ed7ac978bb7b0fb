"""Masked reductions. Masked positions are replaced before they are used, never multiplied away (inf * 0)."""

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum `values` where `mask`, bool of the same shape, is true: over `dim`, or over everything.

    >>> masked_sum(torch.tensor([1.0, 2.0, torch.inf]), torch.tensor([True, True, False])).item()
    3.0
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() if dim is None else kept.sum(dim=dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Return the mean of `values` where `mask` is true; 0 where nothing is.

    >>> masked_mean(torch.tensor([1.0, 2.0, torch.inf]), torch.tensor([True, True, False])).item()
    1.5
    """
    count = mask.sum() if dim is None else mask.sum(dim=dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def masked_moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (Bessel) of each row where `mask` is true, [P, G] -> two [P, 1].

    The mean of nothing and the deviation of fewer than two values are 0. A mask that is true everywhere gives torch's
    own `mean` and `std`, to the last bit.

    >>> mean, std = masked_moments(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.ones(1, 4, dtype=torch.bool))
    >>> mean.tolist(), std.tolist()
    ([[0.25]], [[0.5]])
    """
    if bool(mask.all()) and mask.shape[1] > 1:
        return values.mean(dim=1, keepdim=True), values.std(dim=1, keepdim=True)
    mean = masked_mean(values, mask, dim=1)[:, None]
    squares = masked_sum((values - mean).square(), mask, dim=1)[:, None]
    count = mask.sum(dim=1, keepdim=True)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def centred(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return each row minus its mean where `mask` is true, [P, G] -> [P, G]; 0 elsewhere.

    A row whose values are all equal where the mask is true, or that has fewer than two of them, is exactly 0.

    >>> values, lengths = torch.tensor([[1.0, 0.0, torch.nan]]), torch.tensor([[3, 1, 9]])
    >>> centred(values, ~values.isnan()).tolist(), centred(values, ~values.isnan(), lengths).tolist()
    ([[0.5, -0.5, 0.0]], [[0.25, -0.75, 0.0]])

    Args:
        values: [P, G] float.
        mask: [P, G] bool.
        weights: [P, G] at least 0, not all 0, for the mean; None: equal ones.
    """
    if weights is None:
        mean, _ = masked_moments(values, mask)
    else:
        weights = weights.to(values.dtype)
        mean = masked_sum(weights * values, mask, dim=1)[:, None] / masked_sum(weights, mask, dim=1)[:, None]
    # Equal values less their rounded mean may be 1e-17, which a standard deviation as small would turn into 1.
    return torch.where(differs(values, mask) & mask, values - mean, 0.0)


def masked_extremes(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's smallest and largest value where `mask` is true, [P, G] -> two [P, 1]; inf, -inf of nothing."""
    lowest = values.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)
    return lowest, values.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)


def differs(values: Tensor, mask: Tensor) -> Tensor:
    """Return whether a row has two different values where `mask` is true, [P, G] -> [P, 1] bool."""
    lowest, highest = masked_extremes(values, mask)
    return lowest < highest
