"""Several rewards in one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.base import Lesson, Reward
from grpovi_lightning.structures import Rollout


class CompositeReward(Reward):
    """A weighted sum of rewards, each logged under its own name.

    A weight of 0 observes: the component is computed and logged, but the policy is not trained on it.
    This is how a gold reward is watched while a reward model is optimised.

    Parts may be for different tasks: one that scores no completion of a prompt adds nothing there (`Reward.total`).
    """

    def __init__(self, rewards: list[Reward], reward_weights: list[float] | None = None) -> None:
        """Combines the rewards.

        Args:
            rewards: the parts; their names must differ.
            reward_weights: one weight a part; None weighs each 1.
        """
        super().__init__()
        weights = [1.0] * len(rewards) if reward_weights is None else reward_weights
        if len(weights) != len(rewards) or not rewards:
            raise UserError(f"reward_weights: got {len(weights)} weights for {len(rewards)} rewards, expected one each")
        self.parts = nn.ModuleList(rewards)
        self._weights: dict[str, float] = {}
        for part, factor in zip(rewards, weights, strict=True):
            for name, weight in part.weights().items():
                if name in self._weights:
                    raise UserError(f"two rewards are named {name!r}; give one of them another `name`")
                self._weights[name] = factor * weight
        learning = [part for part in self._rewards() if part.learns]
        if len(learning) > 1:
            raise UserError(f"composite reward: got {len(learning)} parts that learn, expected at most one")
        self.learns = bool(learning)
        if not any(self._weights.values()):
            raise UserError(
                f"reward_weights: got {weights}, expected at least one that is not 0; nothing would be trained"
            )

    def weights(self) -> dict[str, float]:
        """The parts' weights times theirs here."""
        return dict(self._weights)

    def load(self, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        """Loads every part."""
        for part in self._rewards():
            part.load(policy_tokenizer)

    def check(self) -> None:
        """Checks every part."""
        for part in self._rewards():
            part.check()

    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """The components of all parts."""
        return {name: score for part in self._rewards() for name, score in part.components(rollout).items()}

    def learn(self, rollout: Rollout, seed: int, stopping: Callable[[], bool] = lambda: False) -> Lesson:
        """The lesson of the part that learns. Where that part is only observed, the total has not changed."""
        for part in self._rewards():
            if part.learns:
                lesson = part.learn(rollout, seed, stopping)
                counts = any(self._weights[name] != 0.0 for name in part.weights())
                return replace(lesson, changed=lesson.changed and counts)
        return Lesson()

    def save_learned(self, folder: str | Path) -> None:
        """Writes what the part that learns has learned."""
        for part in self._rewards():
            part.save_learned(folder)

    def progress(self) -> dict[str, float]:
        """The totals of all parts."""
        return {name: value for part in self._rewards() for name, value in part.progress().items()}

    def _rewards(self) -> list[Reward]:
        return [part for part in self.parts if isinstance(part, Reward)]
