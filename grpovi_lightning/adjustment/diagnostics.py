"""What a variance increase did to a batch, in numbers."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment.adjustments import Increase

_NEGLIGIBLE = 1e-12
"""Share of the squared range below which a variance counts as zero."""
_CHANGED = 1e-6
"""Share of the range that a reward must move by to count as changed."""


def increase_metrics(increase: Increase, raw_advantages: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    """Scalars of one batch, means over its groups where nothing else is said in `metric_keys`.

    Args:
        increase: the problem and its solution.
        raw_advantages: [P, G] from the rewards as they were scored.
        advantages: [P, G] from the increased ones.

    Returns:
        name -> scalar tensor in float64.
    """
    rewards, adjusted = increase.rewards.double(), increase.adjusted.double()
    lower, upper = increase.lower.double(), increase.upper.double()
    weights = increase.log_weights.softmax(dim=1)
    uniform = torch.full_like(weights, 1.0 / weights.shape[1])
    span = upper - lower
    before = _variance(rewards, weights)
    return {
        keys.ADJUSTMENT_VARIANCE_BEFORE: before.mean(),
        keys.ADJUSTMENT_VARIANCE_AFTER: _variance(adjusted, weights).mean(),
        keys.ADJUSTMENT_UNIFORM_VARIANCE_BEFORE: _variance(rewards, uniform).mean(),
        keys.ADJUSTMENT_UNIFORM_VARIANCE_AFTER: _variance(adjusted, uniform).mean(),
        keys.ADJUSTMENT_FRAC_CHANGED: ((adjusted - rewards).abs() > _CHANGED * span).any(dim=1).double().mean(),
        keys.ADJUSTMENT_FRAC_ZERO_VARIANCE: (before <= _NEGLIGIBLE * span[:, 0].square()).double().mean(),
        keys.ADJUSTMENT_EFFECTIVE_WEIGHTS: (-weights.xlogy(weights).sum(dim=1)).exp().mean(),
        keys.ADJUSTMENT_RANGE_LOWER: lower.mean(),
        keys.ADJUSTMENT_RANGE_UPPER: upper.mean(),
        keys.ADJUSTMENT_ADVANTAGE_COSINE: _cosine(raw_advantages.double(), advantages.double()),
        keys.ADJUSTMENT_SIGN_FLIPS: (raw_advantages.sign() * advantages.sign() < 0).double().mean(),
        **_residuals(rewards, adjusted, weights, lower, upper),
    }


def _residuals(rewards: Tensor, adjusted: Tensor, weights: Tensor, lower: Tensor, upper: Tensor) -> dict[str, Tensor]:
    """By how much the constraints of model (3) are missed at worst, as shares of the range."""
    span = upper - lower
    in_order = adjusted.gather(1, rewards.argsort(dim=1, descending=True, stable=True))
    mean = ((weights * (adjusted - rewards)).sum(dim=1, keepdim=True) / span).abs()
    bounds = (torch.maximum(lower - adjusted, adjusted - upper) / span).clamp(min=0.0)
    order = (in_order.diff(dim=1) / span).clamp(min=0.0)
    return {
        keys.ADJUSTMENT_RESIDUAL_MEAN: mean.amax(),
        keys.ADJUSTMENT_RESIDUAL_BOUNDS: bounds.amax(),
        keys.ADJUSTMENT_RESIDUAL_ORDER: order.amax() if order.numel() else torch.zeros_like(mean.amax()),
    }


def _variance(values: Tensor, weights: Tensor) -> Tensor:
    """Variance of each group under its weights, [P, G] -> [P]."""
    mean = (weights * values).sum(dim=1, keepdim=True)
    return (weights * (values - mean).square()).sum(dim=1)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine over the whole batch; 1 where the two are equal, also when both are zero."""
    if torch.equal(first, second):
        return torch.ones((), dtype=first.dtype, device=first.device)
    return cosine_similarity(first.flatten(), second.flatten(), dim=0)
