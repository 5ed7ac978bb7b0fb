"""Several rewards in one."""

import math
from collections.abc import Callable

from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.base import Reward
from grpovi_lightning.rewards.parts import RewardOfParts
from grpovi_lightning.structures import Rollout


class CompositeReward(RewardOfParts):
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
        weights = [1.0] * len(rewards) if reward_weights is None else reward_weights
        if len(weights) != len(rewards) or not rewards:
            raise UserError(f"reward_weights: got {len(weights)} weights for {len(rewards)} rewards, expected one each")
        if not all(map(math.isfinite, weights)):
            raise UserError(f"reward_weights: got {weights}, expected finite numbers")
        super().__init__(rewards)
        self._weights: dict[str, float] = {}
        for part, factor in zip(rewards, weights, strict=True):
            for name, weight in part.weights().items():
                if name in self._weights:
                    raise UserError(f"two rewards are named {name!r}; give one of them another `name`")
                self._weights[name] = factor * weight
        if not any(self._weights.values()):
            raise UserError(
                f"reward_weights: got {weights}, expected at least one that is not 0; nothing would be trained"
            )
        trained = [(part.bounds, weight) for part, weight in zip(rewards, weights, strict=True) if weight != 0.0]
        ends, factor = trained[0] if len(trained) == 1 else (None, 1.0)  # of a sum of several, nothing is known
        if ends is not None:
            self.bounds = min(factor * ends[0], factor * ends[1]), max(factor * ends[0], factor * ends[1])

    def weights(self) -> dict[str, float]:
        return dict(self._weights)

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
