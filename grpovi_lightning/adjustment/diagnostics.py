"""Scalars that show what an adjustment did to the rewards of a batch."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.adjustment.adjustments import Increase
from grpovi_lightning.ops.masked import masked_extremes

_NEGLIGIBLE = 1e-12
"""Share of the squared range below which a variance counts as zero."""
CHANGED = 1e-6
"""Share of the range that a reward must move by to count as changed."""


def increase_metrics(increase: Increase, raw_advantages: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    """Return the scalars of one batch: means over its groups, unless `metric_keys` says otherwise.

    Completions that were not scored do not count, nor do groups in which none was.

    >>> rewards, adjusted, zeros = torch.tensor([[0.75, 0.25]]), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    >>> increase = Increase(rewards, adjusted, zeros, torch.zeros(1, 1), torch.ones(1, 1))
    >>> metrics = increase_metrics(increase, rewards - 0.5, adjusted - 0.5)
    >>> metrics["adjustment/variance_before"].item(), metrics["adjustment/variance_after"].item()
    (0.0625, 0.25)

    Args:
        increase: what was done.
        raw_advantages: [P, G] of the raw rewards; 0 where a completion was not scored, all NaN where there are none.
        advantages: [P, G] of the adjusted rewards, likewise.

    Returns:
        name -> float64 scalar. Where no completion was scored, cosine and residuals are numbers, the rest NaN.
    """
    groups = increase.scored.any(dim=1)
    scored = increase.scored[groups]
    rewards, adjusted = (_filled(values[groups].double(), scored) for values in (increase.rewards, increase.adjusted))
    lower, upper = increase.lower[groups].double(), increase.upper[groups].double()
    weights = increase.log_weights[groups].masked_fill(~scored, -torch.inf).softmax(dim=1)
    uniform = scored.double() / scored.sum(dim=1, keepdim=True)
    span = upper - lower
    before = weighted_variance(rewards, weights)
    flips = (raw_advantages.sign() * advantages.sign() < 0).double()
    flips = flips.masked_fill((raw_advantages + advantages).isnan(), torch.nan)
    return {
        keys.ADJUSTMENT_VARIANCE_BEFORE: before.mean(),
        keys.ADJUSTMENT_VARIANCE_AFTER: weighted_variance(adjusted, weights).mean(),
        keys.ADJUSTMENT_UNIFORM_VARIANCE_BEFORE: weighted_variance(rewards, uniform).mean(),
        keys.ADJUSTMENT_UNIFORM_VARIANCE_AFTER: weighted_variance(adjusted, uniform).mean(),
        keys.ADJUSTMENT_FRAC_CHANGED: ((adjusted - rewards).abs() > CHANGED * span).any(dim=1).double().mean(),
        keys.ADJUSTMENT_FRAC_ZERO_VARIANCE: (before <= _NEGLIGIBLE * span[:, 0].square()).double().mean(),
        keys.ADJUSTMENT_EFFECTIVE_WEIGHTS: (-weights.xlogy(weights).sum(dim=1)).exp().mean(),
        keys.ADJUSTMENT_RANGE_LOWER: lower.mean(),
        keys.ADJUSTMENT_RANGE_UPPER: upper.mean(),
        keys.ADJUSTMENT_ADVANTAGE_COSINE: _cosine(raw_advantages.double(), advantages.double()),
        keys.ADJUSTMENT_SIGN_FLIPS: flips[increase.scored].mean(),
        keys.ADJUSTMENT_RESIDUAL_MEAN: _largest((weights * (adjusted - rewards)).sum(dim=1, keepdim=True).abs() / span),
        keys.ADJUSTMENT_RESIDUAL_BOUNDS: _largest(torch.maximum(lower - adjusted, adjusted - upper) / span),
        keys.ADJUSTMENT_RESIDUAL_ORDER: _largest(_in_order(rewards, adjusted, scored).diff(dim=1) / span),
    }


def _filled(values: Tensor, scored: Tensor) -> Tensor:
    """Put the group's smallest scored value where nothing was scored: with weight 0 it changes no statistic."""
    return torch.where(scored, values, masked_extremes(values, scored)[0])


def _in_order(rewards: Tensor, adjusted: Tensor, scored: Tensor) -> Tensor:
    """Return the adjusted rewards [P, G] in descending order of the raw ones, those that were not scored last."""
    order = rewards.masked_fill(~scored, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return adjusted.gather(1, order)


def _largest(violations: Tensor) -> Tensor:
    """Return the largest violation, a scalar; 0 where none is positive."""
    return violations.amax().clamp(min=0.0) if violations.numel() else violations.new_zeros(())


def weighted_variance(values: Tensor, weights: Tensor) -> Tensor:
    """Return the variance of each group under its weights, which sum to 1: [P, G] -> [P]."""
    mean = (weights * values).sum(dim=1, keepdim=True)
    return (weights * (values - mean).square()).sum(dim=1)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return the cosine of the angle over the whole batch; 1 where the two are equal, also when both are zero."""
    if torch.equal(first, second):
        return torch.ones((), dtype=first.dtype, device=first.device)
    return cosine_similarity(first.flatten(), second.flatten(), dim=0)
