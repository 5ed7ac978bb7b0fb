"""The contract of a reward: completions -> one number each, by named components."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grpovi_lightning.errors import UserError
from grpovi_lightning.structures import Rollout


@dataclass(frozen=True)
class Lesson:
    """What a reward made of the completions of a step.

    Attributes:
        metrics: name -> scalar to log.
        changed: whether the same completions would now get other rewards.
        problems: what the person who runs the training should hear of, a line each.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    changed: bool = False
    problems: Sequence[str] = ()


class Reward(nn.Module):
    """Scores rollouts. The total that the policy is trained on is a weighted sum of the components.

    A score of NaN says that the completion could not be scored; scores are never infinite.
    """

    learns: bool = False
    """Whether the reward changes while the policy is trained. What it has learned is its `extra state`, which alone of
    a reward goes into checkpoints."""

    @abstractmethod
    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """Name -> [B] float32 scores, NaN where the component cannot score the completion."""

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Name -> weight in the total."""

    def load(self, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        """Loads what scoring needs; called before training, on every rank; a second call does nothing."""

    def check(self) -> None:
        """Raises `UserError` where it can be told without loading that loading would fail."""

    def learn(self, rollout: Rollout, seed: int, stopping: Callable[[], bool] = lambda: False) -> Lesson:
        """Learns from the completions of a step, after the policy has; called at every step, on every rank.

        Args:
            rollout: the completions that the policy was trained on, those of this rank.
            seed: the run's seed.
            stopping: whether the run is asked to stop; a reward that waits for something gives up then.
        """
        return Lesson()

    def save_learned(self, folder: str | Path) -> None:
        """Writes what was learned during training into a folder; nothing where nothing was."""
        return

    def progress(self) -> dict[str, float]:
        """Running totals that held-out curves may be drawn against, such as labels used; the same names every time."""
        return {}

    def total(self, components: dict[str, Tensor], group_size: int) -> Tensor:
        """Weighted sum of the components. Those of weight 0 are observed, not trained on: they never matter here.

        A component that scored no completion of a prompt does not apply to the prompt and adds nothing, as a reward
        function for another task does. One that scored only some makes the others unscorable, because sums over
        different components cannot be compared within a group.

        Args:
            components: name -> [B], NaN where a completion could not be scored.
            group_size: G, completions per prompt.

        Returns:
            [B], NaN for completions without a reward: those, and all of a prompt to which no component applies.

        Raises:
            UserError: a sum is infinite.
        """
        trained = [weight * components[name] for name, weight in self.weights().items() if weight != 0.0]
        parts = torch.stack(trained).unflatten(1, (-1, group_size))
        unscored = parts.isnan()
        absent = unscored.all(dim=2, keepdim=True)
        total = parts.masked_fill(absent, 0.0).sum(dim=0)
        infinite = ~total.isfinite() & ~unscored.any(dim=0)
        if bool(infinite.any()):
            prompt, member = infinite.nonzero()[0].tolist()
            raise UserError(
                f"reward: got {total[prompt, member].item()} for completion {member} of prompt {prompt}, expected a "
                "finite float32 number; use smaller rewards or reward_weights"
            )
        return total.masked_fill(absent.all(dim=0), torch.nan).flatten()
