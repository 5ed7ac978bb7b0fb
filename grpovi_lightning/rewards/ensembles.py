"""Several reward models that score the same thing, combined into one reward."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.sources import Precision
from grpovi_lightning.rewards.models import RewardModel
from grpovi_lightning.rewards.parts import RewardOfParts
from grpovi_lightning.structures import Rollout


class Combination(ABC):
    """Combines the scores of M members."""

    @abstractmethod
    def __call__(self, scores: Tensor) -> Tensor:
        """Combine scores [M, B] -> [B]."""


class MemberMean(Combination):
    """The mean of the members.

    >>> MemberMean()(torch.tensor([[1.0, 4.0], [3.0, 4.0]])).tolist()
    [2.0, 4.0]
    """

    def __call__(self, scores: Tensor) -> Tensor:
        return scores.mean(dim=0)


class MemberMinimum(Combination):
    """The most pessimistic member (worst-case optimisation of arXiv 2310.02743).

    >>> MemberMinimum()(torch.tensor([[1.0, 4.0], [3.0, 4.0]])).tolist()
    [1.0, 4.0]
    """

    def __call__(self, scores: Tensor) -> Tensor:
        return scores.amin(dim=0)


class MemberLowerBound(Combination):
    """The mean minus k times the spread, the members' standard deviation (Bessel); the mean where they agree.

    arXiv 2310.02743 subtracts a multiple of the variance; the standard deviation keeps the reward's unit.

    >>> MemberLowerBound(k=0.5)(torch.tensor([[1.0, 4.0], [2.0, 4.0], [3.0, 4.0]])).tolist()
    [1.5, 4.0]
    """

    def __init__(self, k: float = 1.0) -> None:
        """Set the factor of the spread.

        Raises:
            UserError: it is not above 0.
        """
        if not 0.0 < k < float("inf"):
            raise UserError(f"MemberLowerBound.k: got {k}, expected a number above 0; for the mean use MemberMean")
        self.k = k

    def __call__(self, scores: Tensor) -> Tensor:
        return scores.mean(dim=0) - self.k * scores.std(dim=0)


class RewardModelEnsemble(RewardOfParts):
    """Reward models of one kind, such as those of several seeds, that score in turn and are combined.

    Beside the combined score, `name`, each member's is logged as `name_0` and so on, and the members' standard
    deviation (Bessel) as `name_spread`: components of weight 0. Each member is standardised by its own checkpoint.
    """

    def __init__(
        self,
        paths: list[str],
        combination: Combination = MemberMean(),  # noqa: B008  has no state
        name: str = "ensemble",
        dtype: Precision = "float32",
        batch_size: int = 16,
        truncate: Literal["prompt"] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Name the checkpoints.

        Args:
            paths: folders or hub names of the members.
            combination: how their scores become one.
            name: the name under which the combined score is logged.
            dtype: dtype of the members' weights.
            batch_size: sequences that a member scores at once.
            truncate: see `RewardModel`, as of `chat_template`.
            chat_template: through which all members read conversations.

        Raises:
            UserError: fewer than two members, or one of them twice.
        """
        if len(set(paths)) < max(2, len(paths)):
            raise UserError(f"ensemble paths: got {', '.join(paths) or 'none'}, expected at least two different ones")
        members = [
            RewardModel(path, f"{name}_{i}", dtype, batch_size, truncate=truncate, chat_template=chat_template)
            for i, path in enumerate(paths)
        ]
        super().__init__(members)
        self.name, self.combination = name, combination

    def weights(self) -> dict[str, float]:
        members = [name for part in self._rewards for name in part.weights()]
        return {self.name: 1.0} | dict.fromkeys([*members, f"{self.name}_spread"], 0.0)

    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        members = {name: score for part in self._rewards for name, score in part.components(rollout).items()}
        scores = torch.stack(list(members.values()))
        return {self.name: self.combination(scores), **members, f"{self.name}_spread": scores.std(dim=0)}
