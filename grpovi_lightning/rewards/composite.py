"""Several rewards in one."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.base import Reward, RewardUpdate
from grpovi_lightning.rewards.sequences import SequenceReader
from grpovi_lightning.structures import Rollout


class CompositeReward(Reward):
    """A weighted sum of rewards, each logged under its own name.

    A component of weight 0 is computed and logged, but the policy is not trained on it: so a gold reward can be watched
    while a reward model is optimised. Parts may be for different tasks (`Reward.total`).

    >>> from grpovi_lightning.rewards import RewardFunction
    >>> CompositeReward([RewardFunction(len, "proxy"), RewardFunction(len, "gold")], [1.0, 0.0]).weights()
    {'proxy': 1.0, 'gold': 0.0}
    """

    def __init__(self, rewards: list[Reward], reward_weights: list[float] | None = None) -> None:
        """Combine the rewards.

        Args:
            rewards: the parts; at most one that learns.
            reward_weights: a weight for each part, with which its own weights are multiplied; None: 1 each.

        Raises:
            UserError: not one weight for each part, two components of one name, two parts that learn, or all weights 0.
        """
        super().__init__()
        weights = [1.0] * len(rewards) if reward_weights is None else reward_weights
        if len(weights) != len(rewards) or not rewards:
            raise UserError(f"reward_weights: got {len(weights)} weights for {len(rewards)} rewards, expected one each")
        self.parts, self._rewards = nn.ModuleList(rewards), rewards  # the list knows that they are rewards
        self._weights: dict[str, float] = {}
        for part, factor in zip(rewards, weights, strict=True):
            for name, weight in part.weights().items():
                if name in self._weights:
                    raise UserError(f"two rewards are named {name!r}; give one of them another `name`")
                self._weights[name] = factor * weight
        learning = [part for part in self._rewards if part.learns]
        if len(learning) > 1:
            raise UserError(f"composite reward: got {len(learning)} parts that learn, expected at most one")
        self.learns = bool(learning)
        self.waits = any(part.waits for part in rewards)
        if not any(self._weights.values()):
            raise UserError(
                f"reward_weights: got {weights}, expected at least one that is not 0; nothing would be trained"
            )

    def weights(self) -> dict[str, float]:
        return dict(self._weights)

    def load(self, policy_tokenizer: PreTrainedTokenizerBase) -> None:
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

    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        return self.begin(rollout)()

    def begin(self, rollout: Rollout) -> Callable[[], dict[str, Tensor]]:
        begun = [part.begin(rollout) for part in self._rewards]
        return lambda: self._finished(begun)

    def _finished(self, begun: list[Callable[[], dict[str, Tensor]]]) -> dict[str, Tensor]:
        # Those that wait for answers do so together, and the others compute meanwhile.
        order = sorted(range(len(begun)), key=lambda i: self._rewards[i].waits)
        found = {i: begun[i]() for i in order}
        return {name: score for i in range(len(begun)) for name, score in found[i].items()}

    def learn(self, rollout: Rollout, seed: int, stopping: Callable[[], bool] = lambda: False) -> RewardUpdate:
        for part in self._rewards:
            if part.learns:
                update = part.learn(rollout, seed, stopping)
                # A part of weight 0 leaves the total as it was, whatever it has learned.
                trained_on = any(self._weights[name] != 0.0 for name in part.weights())
                return replace(update, changed=update.changed and trained_on)
        return RewardUpdate()

    def save_learned(self, folder: str | Path) -> None:
        for part in self._rewards:
            part.save_learned(folder)

    def progress(self) -> dict[str, float]:
        return {name: value for part in self._rewards for name, value in part.progress().items()}
