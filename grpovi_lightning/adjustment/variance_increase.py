"""The reward adjustment of GRPOVI in closed form (arXiv 2505.23247, model (3))."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from grpovi_lightning.adjustment.ties import Sums, Ties, TiesName, ties_of


def increase_variance(
    rewards: Tensor,
    log_weights: Tensor | None = None,
    *,
    lower: float | Tensor,
    upper: float | Tensor,
    ties: Ties | TiesName = "merge",
) -> Tensor:
    """Raise the weighted reward variance of each group as far as order, mean and bounds allow.

    >>> rewards = torch.tensor([[0.25, 0.75, 0.5]])
    >>> increase_variance(rewards, lower=0.0, upper=1.0).tolist()  # the mean stays 0.5
    [[0.0, 1.0, 0.5]]
    >>> weights = torch.tensor([[2.0, 1.0, 1.0]])  # the first completion is twice as likely
    >>> increase_variance(rewards, weights.log(), lower=0.0, upper=1.0).tolist()  # the weighted mean stays 0.4375
    [[0.0, 1.0, 0.75]]

    For one group with rewards r and normalised weights p it solves

        maximise sum p_i z_i^2   subject to   lower <= z_i <= upper,  sum p_i z_i = sum p_i r_i,
                                              z ordered as r.

    The paper scans extreme points (its Algorithm 2) and ends with at most one value strictly between the
    bounds. So the optimum gives `upper` to the largest rewards until the mean is spent, and has a closed form:
    with s = (r - lower) / (upper - lower), in descending order of reward,

        f_i = clip((A_i - B_i) / p_i, 0, 1),   A_i = sum_{j >= i} p_j s_j,   B_i = sum_{j < i} p_j (1 - s_j),
        z_i = lower + (upper - lower) f_i.

    Both sums have non-negative terms and are accumulated as cumulative log-sum-exps, so weights may span
    hundreds of orders of magnitude. Solved in float64. A group whose rewards are all equal stays as it is.

    Departure from the paper: with `ties="merge"` (default) equal rewards are one atom with the summed
    weight and keep one value; the paper's model (`ties="split"`) may send two equal rewards to different
    ends of the range.

    Args:
        rewards: [P, G], any float dtype.
        log_weights: [P, G] natural logs of the weights, unnormalised; None is uniform; -inf is a weight of 0.
        lower: the bound m of the range, a number or [P, 1].
        upper: the bound M of the range, a number or [P, 1].
        ties: "merge" or "split", or the object that stands for it.

    Returns:
        [P, G] adjusted rewards in the caller's order, dtype and device.

    Raises:
        ValueError: shapes do not match, a reward is not finite or outside the range, lower >= upper, or the
            weights of a whole group are zero.
    """
    r, log_p, low, high = _checked(rewards, log_weights, lower, upper)
    r, order = r.sort(dim=1, descending=True, stable=True)
    z = _closed_form(r, log_p.gather(1, order), low, high, ties_of(ties))
    return torch.empty_like(z).scatter(1, order, z).to(rewards.dtype)


def _closed_form(r: Tensor, log_p: Tensor, low: Tensor, high: Tensor, merge: Ties) -> Tensor:
    """Solve the model for rewards and normalised log weights [P, G] in descending order of reward, float64."""
    # 1 - s is taken from the rewards, not from the rounded s: it must be exact also where s is nearly 1.
    log_s, log_rest = (torch.stack([r - low, high - r]) / (high - low)).log()

    log_a = (log_p + log_s).flip(1).logcumsumexp(dim=1).flip(1)  # flipped, because A runs from i to the end
    log_b = pad((log_p + log_rest).logcumsumexp(dim=1)[:, :-1], (1, 0), value=-torch.inf)  # and B stops before i
    log_a, log_b, log_p = merge(r, Sums(log_a, log_b, log_p))

    # log(A - B) where A > B; elsewhere the mean is spent, its log is -inf, or NaN from -inf - -inf where A is 0.
    left = log_a + (-(log_b - log_a).clamp(max=0.0).exp()).log1p()
    fraction = (left - log_p).clamp(max=0.0).exp().nan_to_num(nan=0.0)
    # Where A equals B up to rounding, weights far below that rounding could break the order.
    fraction = fraction.cummin(dim=1).values
    z = torch.lerp(low, high, fraction)  # the bounds themselves where the fraction is 0 or 1
    return torch.where(r[:, :1] == r[:, -1:], r, z)


def _checked(
    rewards: Tensor, log_weights: Tensor | None, lower: float | Tensor, upper: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rewards and normalised log weights [P, G] and both bounds [P, 1], in float64.

    Raises:
        ValueError: an argument is wrong; the message names the first number that is.
    """
    if rewards.ndim != 2 or rewards.shape[1] == 0 or not rewards.is_floating_point():
        raise ValueError(f"rewards: got {rewards.dtype} {list(rewards.shape)}, expected a float tensor [P, G], G >= 1")
    r = rewards.detach().double()
    weights = torch.zeros_like(r) if log_weights is None else log_weights.detach().to(r.device, torch.float64)
    if weights.shape != r.shape:
        raise ValueError(f"log_weights: got shape {list(weights.shape)}, expected that of rewards, {list(r.shape)}")
    low, high = (_bound(value, rewards, name) for value, name in ((lower, "lower"), (upper, "upper")))
    # The last cumulative sum is the whole one, in one operation where `logsumexp` is made of several.
    total, span = weights.logcumsumexp(dim=1)[:, -1:], high - low
    # Every condition is written so that a NaN fails it. One look at the outcome: on a GPU each look waits for it.
    good = (r >= low) & (r <= high) & (total.isfinite() & span.isfinite() & (span > 0.0))
    if not bool(good.all()):
        _explain(r, weights, low, high)
    return r, weights - total, low, high


def _explain(r: Tensor, weights: Tensor, low: Tensor, high: Tensor) -> None:
    """Raise the ValueError for the first thing that is wrong with the arguments."""
    _refuse(~r.isfinite(), r, "rewards", "a finite number")
    _refuse(~low.isfinite(), low, "lower", "a finite number")
    _refuse(~high.isfinite(), high, "upper", "a finite number")
    _refuse(weights.isnan() | (weights == torch.inf), weights, "log_weights", "a finite number or -inf")
    _refuse(low >= high, low, "lower", "less than upper")
    _refuse(r < low, r, "rewards", "at least the lower bound of the range")
    _refuse(r > high, r, "rewards", "at most the upper bound of the range")
    _refuse((weights == -torch.inf).all(dim=1, keepdim=True), weights[:, :1], "log_weights", "one weight above zero")
    _refuse(~(high - low).isfinite(), high, "upper", "a range whose width float64 can hold")
    raise AssertionError("the arguments are in order")


def _bound(value: float | Tensor, rewards: Tensor, name: str) -> Tensor:
    n_groups = rewards.shape[0]
    if not isinstance(value, Tensor):
        # Rounded as the rewards are: a float32 reward of 0.1 is not above an upper bound of 0.1.
        value = torch.tensor(value, dtype=rewards.dtype)
    bound = value.detach().to(rewards.device, torch.float64)
    if bound.ndim == 0:
        bound = bound.expand(n_groups, 1)
    if bound.shape != (n_groups, 1):
        raise ValueError(f"{name}: got shape {list(bound.shape)}, expected a number or [{n_groups}, 1]")
    return bound


def _refuse(bad: Tensor, values: Tensor, name: str, expected: str) -> None:
    if bool(bad.any()):
        group, member = bad.nonzero()[0].tolist()
        raise ValueError(f"{name}: got {values[group, member].item()!r} at [{group}, {member}], expected {expected}")
