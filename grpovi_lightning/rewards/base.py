"""The contract of a reward: completions -> one number each, by named components."""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grpovi_lightning.structures import Rollout


class Reward(nn.Module):
    """Scores rollouts. The total that the policy is trained on is a weighted sum of the components."""

    @abstractmethod
    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """Name -> [B] float32 scores."""

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Name -> weight in the total."""

    def load(self, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        """Loads what scoring needs; called before training, on every rank; a second call does nothing."""

    def check(self) -> None:
        """Raises `UserError` where it can be told without loading that loading would fail."""

    def total(self, components: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the components, [B]. Components of weight 0 are observed, not trained on."""
        trained = [weight * components[name] for name, weight in self.weights().items() if weight != 0.0]
        return torch.stack(trained).sum(dim=0)
