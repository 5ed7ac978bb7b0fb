"""How much the rewards of a group differ, as a share of the most that they could."""

import torch
from torch import Tensor, nn


def normalised_variance(rewards: Tensor, span: float) -> Tensor:
    """Return the variance of each group over the largest that as many rewards within `span` can have: [P, G] -> [P].

    Largest is that of half the rewards at either end. Both variances are, up to a factor, sums over pairs of squared
    differences: k (n - k) for k successes among n rewards of 0 or 1, a whole number.

    >>> normalised_variance(torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 1.0]]), span=1.0).tolist()
    [1.0, 0.6666666666666666]

    Args:
        rewards: NaN where a completion could not be scored; the others count.
        span: largest minus smallest possible reward; at 0 every variance is 0.

    Returns:
        float64 in [0, 1]; 0 for groups with fewer than two rewards.
    """
    values, n = rewards.double(), (~rewards.isnan()).sum(dim=1).double()
    squares = (values[:, :, None] - values[:, None]).nan_to_num(nan=0.0).square().sum(dim=(1, 2)) / 2
    largest = (n // 2) * (n - n // 2) * span**2
    return torch.where(largest > 0, squares / largest, 0.0)


class RunningSpread(nn.Module):
    """The normalised variance within the rewards of the run so far: from the smallest to the largest that was seen.

    So rewards need no bounds, and those of 0 or 1 have the bounds 0 and 1 as soon as two differ.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lowest", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("highest", torch.tensor(-torch.inf, dtype=torch.float64))

    def forward(self, rewards: Tensor) -> list[float]:
        """Return the normalised variance of each group [P, G], whose rewards are then seen, too."""
        known = rewards[~rewards.isnan()].double()
        if known.numel():
            self.lowest = torch.minimum(self.lowest, known.min())
            self.highest = torch.maximum(self.highest, known.max())
        return normalised_variance(rewards, float(self.highest - self.lowest)).tolist()

    def clear(self) -> None:
        """Forget the rewards seen."""
        self.lowest.fill_(torch.inf)
        self.highest.fill_(-torch.inf)
