"""Ragged token lists to rectangular tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Pad token lists at the end with `fill`.

    >>> ids, mask = pad_right([[5, 6], [7]], fill=0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [7, 0]], [[True, True], [True, False]])

    Returns:
        (ids [B, L] int64, mask [B, L] bool), with L the length of the longest list.
    """
    length = max((len(row) for row in rows), default=0)
    padded = [[*row, *[fill] * (length - len(row))] for row in rows]
    mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return torch.tensor(padded, dtype=torch.long).view(len(rows), length), mask


def pad_left(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Pad token lists at the beginning with `fill`; otherwise as `pad_right`."""
    ids, mask = pad_right([list(reversed(row)) for row in rows], fill)
    return ids.flip(1), mask.flip(1)


def position_ids(mask: Tensor) -> Tensor:
    """Return the position of each token among the unmasked ones, so that padding shifts nothing; [B, L] -> [B, L].

    >>> position_ids(torch.tensor([[False, False, True, True]])).tolist()  # 0 at padding before the first token
    [[0, 0, 0, 1]]
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
