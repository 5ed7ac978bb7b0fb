"""The contract of a reward: it gives each completion one number, the weighted sum of named components."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.rewards.sequences import SequenceReader
from grpovi_lightning.structures import OnCompletion, Rollout


@dataclass(frozen=True)
class RewardUpdate:
    """The outcome of `Reward.learn` for one step.

    Attributes:
        metrics: name -> scalar to log.
        changed: whether the same completions would now get other rewards.
        problems: messages for the person who runs the training, a line each.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    changed: bool = False
    problems: Sequence[str] = ()


class Reward(nn.Module):
    """Scores rollouts. The policy is trained on the `total`, a weighted sum of the components.

    A score of NaN says that the completion could not be scored; scores are never infinite.
    """

    learns: bool = False
    """Whether the reward changes while the policy is trained. What it has learned is its `extra state`, the only part
    of a reward that goes into checkpoints."""

    waits: bool = False
    """Whether scoring is waiting for answers, during which other rewards can be computed."""

    bounds: tuple[float, float] | None = None
    """Smallest and largest total that there can be; None where that is not known before completions are scored."""

    @abstractmethod
    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """Return name -> [B] float32 scores, NaN where the component cannot score the completion."""

    def begin(self, rollout: Rollout) -> Callable[[], dict[str, Tensor]]:
        """Return what gives the `components`; a reward that waits asks for answers now, others begin when called."""
        return partial(self.components, rollout)

    def on_completion(self) -> OnCompletion | None:
        """Return what is told of each completion that has ended, before `begin` is called for all; None: nothing is."""
        return None

    def readers(self) -> Sequence[SequenceReader]:
        """Return what turns completions into tokens for models of the reward's own, once `load` was called."""
        return ()

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Return name -> weight in the total, for every name that `components` has."""

    def load(self, policy_tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Load what scoring needs; called before training, on every rank. A second call does nothing.

        Args:
            policy_tokenizer: of the policy whose completions are scored; None: answers of tables are, text alone.
        """

    def check(self) -> None:
        """Raise `UserError` if it can be told without loading that loading would fail."""

    def check_columns(self, tables: Mapping[str, Collection[str]]) -> None:
        """Raise `UserError` if scoring needs a column that a table lacks.

        Args:
            tables: "train", "validation" or "test" -> the columns that its prompts bring.
        """

    def learn(self, rollout: Rollout, seed: int, stopping: Callable[[], bool] = lambda: False) -> RewardUpdate:
        """Learn from the completions of this rank on which the policy was trained, and say what there is to log.

        Called at every step after the policy's update, on every rank. A reward that waits for something gives up once
        `stopping` says that the run was asked to stop.
        """
        return RewardUpdate()

    def save_learned(self, folder: str | Path) -> None:
        """Write what was learned during training into a folder; nothing for a reward that does not learn."""

    def progress(self) -> dict[str, float]:
        """Return running totals, such as labels used, as an axis for held-out curves; the same names every time.

        Called once at the end of every evaluation, on every rank; counts of an evaluation alone begin anew with it.
        """
        return {}

    def total(self, components: dict[str, Tensor], group_size: int) -> Tensor:
        """Return the weighted sum of the components. Those of weight 0 are only observed: they have no effect here.

        A component that scored no completion of a prompt, such as a reward function for another task, does not apply to
        the prompt and adds nothing. If it scored only some, the rest have no reward, because sums over different
        components cannot be compared within a group.

        >>> from math import nan
        >>> from grpovi_lightning.rewards import CompositeReward, RewardFunction
        >>> reward = CompositeReward([RewardFunction(len, "length"), RewardFunction(len, "style")], [1.0, 10.0])
        >>> scores = {"length": torch.tensor([1.0, 2.0, 3.0, 4.0]), "style": torch.tensor([nan, nan, 0.5, nan])}
        >>> reward.total(scores, group_size=2).tolist()  # prompt 0 has no style, completion 3 could not be scored
        [1.0, 2.0, 8.0, nan]

        Args:
            components: name -> [B], NaN where a completion could not be scored.
            group_size: G, completions per prompt.

        Returns:
            [B], NaN for completions without a reward, also where no component applies to their prompt.

        Raises:
            TrainingError: a sum is infinite.
        """
        trained = [weight * components[name] for name, weight in self.weights().items() if weight != 0.0]
        parts = torch.stack(trained).unflatten(1, (-1, group_size))
        unscored = parts.isnan()
        absent = unscored.all(dim=2, keepdim=True)
        total = parts.masked_fill(absent, 0.0).sum(dim=0)
        infinite = ~total.isfinite() & ~unscored.any(dim=0)
        if bool(infinite.any()):
            prompt, member = infinite.nonzero()[0].tolist()
            raise TrainingError(
                f"reward: got {total[prompt, member].item()} for completion {member} of prompt {prompt}, expected a "
                "finite float32 number; use smaller rewards or reward_weights"
            )
        return total.masked_fill(absent.all(dim=0), torch.nan).flatten()
