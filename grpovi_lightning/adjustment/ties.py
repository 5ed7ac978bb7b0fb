"""How equal rewards of a group are adjusted: with one value for all, or each with its own."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Sums(NamedTuple):
    """Terms of the closed form for each completion, in descending order of reward, [P, G] each.

    Attributes:
        log_below: log of A, the share of the mean that lies at and below it.
        log_above: log of B, what the completions above it lack to the upper bound.
        log_weight: log of its weight.
    """

    log_below: Tensor
    log_above: Tensor
    log_weight: Tensor


class Ties(ABC):
    """Sums of single completions -> sums of the atoms that get one value each."""

    @abstractmethod
    def __call__(self, rewards: Tensor, sums: Sums) -> Sums:
        """Return the sums of each completion's atom, for rewards [P, G] in descending order and their own sums."""


class SplitTies(Ties):
    """The paper's model: every completion is its own, so two equal rewards may get different values.

    Among equal rewards the one that was sampled first gets the higher value.

    >>> from grpovi_lightning.adjustment import increase_variance
    >>> increase_variance(torch.tensor([[0.5, 0.5, 0.25, 0.25]]), lower=0.0, upper=1.0, ties="split").tolist()
    [[1.0, 0.5, 0.0, 0.0]]
    """

    def __call__(self, rewards: Tensor, sums: Sums) -> Sums:
        return sums


class MergeTies(Ties):
    """Equal rewards are one atom with the summed weight, and get one value. A departure from the paper.

    >>> from grpovi_lightning.adjustment import increase_variance
    >>> increase_variance(torch.tensor([[0.5, 0.5, 0.25, 0.25]]), lower=0.0, upper=1.0, ties="merge").tolist()
    [[0.75, 0.75, 0.0, 0.0]]
    """

    def __call__(self, rewards: Tensor, sums: Sums) -> Sums:
        differ = rewards[:, 1:] != rewards[:, :-1]
        if bool(differ.all()):
            return sums
        starts = pad(differ, (1, 0), value=True)
        run = starts.long().cumsum(dim=1) - 1
        positions = torch.arange(rewards.shape[1], device=rewards.device).expand_as(run)
        first = torch.where(starts, positions, 0).cummax(dim=1).values

        # Every member gets the sums at the start of its run, and the summed weight (a log-sum-exp by segments).
        log_weight = sums.log_weight
        largest = torch.full_like(log_weight, -torch.inf).scatter_reduce(1, run, log_weight, "amax")
        shift = largest.gather(1, run).nan_to_num(neginf=0.0)
        total = torch.zeros_like(log_weight).scatter_add(1, run, (log_weight - shift).exp())
        return Sums(
            sums.log_below.gather(1, first), sums.log_above.gather(1, first), total.gather(1, run).log() + shift
        )


TiesName = Literal["merge", "split"]
_BY_NAME: dict[str, type[Ties]] = {"merge": MergeTies, "split": SplitTies}


def ties_of(ties: Ties | str) -> Ties:
    """Return the object that a short name stands for.

    Raises:
        ValueError: there is no such name.
    """
    if isinstance(ties, Ties):
        return ties
    if ties not in _BY_NAME:
        raise ValueError(f"ties: got {ties!r}, expected {' or '.join(map(repr, _BY_NAME))}")
    return _BY_NAME[ties]()
