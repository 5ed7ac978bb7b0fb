"""The estimate of pass@k."""

from math import comb, nan

import torch
from torch import Tensor


def pass_at(passed: Tensor, counted: Tensor, k: int) -> Tensor:
    """Return the probability that of k completions of a prompt at least one passes, estimated without bias.

    Of the n completions of a prompt that count, c pass. The share of its subsets of k with one that passes is
    1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, equation 1). For k = 1 it is c / n.

    >>> passed = torch.tensor([[True, False, False], [False, False, False]])
    >>> pass_at(passed, torch.ones_like(passed), k=2)
    tensor([0.6667, 0.0000], dtype=torch.float64)

    Args:
        passed: [P, G] bool.
        counted: [P, G] bool, the completions that could be judged.
        k: at least 1.

    Returns:
        [P] float64, NaN for prompts with fewer than k completions that count.
    """
    numbers = zip(counted.sum(dim=1).tolist(), (counted & ~passed).sum(dim=1).tolist(), strict=True)
    shares = [1 - comb(n_failed, k) / comb(n, k) if n >= k else nan for n, n_failed in numbers]
    return torch.tensor(shares, dtype=torch.float64, device=passed.device)
