"""What rewards that are made of other rewards share."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.base import Reward, RewardUpdate
from grpovi_lightning.rewards.sequences import SequenceReader
from grpovi_lightning.structures import OnCompletion, Rollout


class RewardOfParts(Reward):
    """A reward that hands on to its parts whatever they do by themselves; how they are combined is the subclass's."""

    def __init__(self, parts: Sequence[Reward]) -> None:
        """Take the parts.

        Raises:
            UserError: more than one of them learns.
        """
        super().__init__()
        self.parts, self._rewards = nn.ModuleList(parts), list(parts)  # the list knows that they are rewards
        learning = [part for part in parts if part.learns]
        if len(learning) > 1:
            raise UserError(f"composite reward: got {len(learning)} parts that learn, expected at most one")
        self.learns = bool(learning)
        self.waits = any(part.waits for part in parts)

    def on_completion(self) -> OnCompletion | None:
        found = [early for part in self._rewards if (early := part.on_completion()) is not None]
        return partial(_ask_all, found) if found else None

    def load(self, policy_tokenizer: PreTrainedTokenizerBase | None) -> None:
        for part in self._rewards:
            part.load(policy_tokenizer)

    def readers(self) -> list[SequenceReader]:
        return [reader for part in self._rewards for reader in part.readers()]

    def check(self) -> None:
        for part in self._rewards:
            part.check()

    def check_columns(self, tables: Mapping[str, Collection[str]]) -> None:
        for part in self._rewards:
            part.check_columns(tables)

    def learn(self, rollout: Rollout, seed: int, stopping: Callable[[], bool] = lambda: False) -> RewardUpdate:
        updates = [part.learn(rollout, seed, stopping) for part in self._rewards]
        weights = self.weights()
        # A part of weight 0 leaves the total as it was, whatever it has learned.
        trained_on = [any(weights.get(name) != 0.0 for name in part.weights()) for part in self._rewards]
        return RewardUpdate(
            metrics={name: value for update in updates for name, value in update.metrics.items()},
            changed=any(update.changed and trained for update, trained in zip(updates, trained_on, strict=True)),
            problems=[problem for update in updates for problem in update.problems],
        )

    def save_learned(self, folder: str | Path) -> None:
        for part in self._rewards:
            part.save_learned(folder)

    def progress(self) -> dict[str, float]:
        return {name: value for part in self._rewards for name, value in part.progress().items()}


def _ask_all(parts: Sequence[OnCompletion], rollout: Rollout, member: int) -> None:
    for part in parts:
        part(rollout, member)
