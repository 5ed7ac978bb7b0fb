"""What all selections of prompts share: the contract."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.selection.scored import ScoredRollout
from grpovi_lightning.structures import PromptBatch


class PromptTable(Protocol):
    """Where the prompts come from."""

    def prompts(self, numbers: Sequence[int]) -> PromptBatch:
        """Return the training prompts of these numbers, those in `PromptBatch.indices`, on the CPU."""
        ...


@dataclass(frozen=True)
class StepSampling:
    """What a selection may ask for in a training step.

    Attributes:
        roll_out: samples and scores groups. Each rank must call it as often as the others, with as many prompts.
        table: the training table.
        seed: the run's.
        step: training steps done.
    """

    roll_out: Callable[[PromptBatch], ScoredRollout]
    table: PromptTable
    seed: int
    step: int


class PromptSelection(nn.Module):
    """Which prompts a step samples and learns from: before sampling, some may give way to others, and after it, too.

    A step keeps its number of prompts. It is an `nn.Module`, so that what it remembers of prompts is part of the
    checkpoint. Rank 0 writes that, so all ranks must remember the same.
    """

    needs_spare: bool = False
    """Whether the data must hand out `spare_prompts_per_step`."""
    looks_up: bool = False
    """Whether it reads prompts from the table."""

    @abstractmethod
    def forward(self, prompts: PromptBatch, sampling: StepSampling) -> ScoredRollout:
        """Return as many prompts of this rank as the step has, with their groups; spare ones are in `prompts`."""

    def shares(self, scored: ScoredRollout) -> dict[str, float]:
        """Return the scalars of a step that tell what was selected, on this rank."""
        n_left_out = 0 if scored.left_out is None else int(scored.left_out.sum())
        return {
            keys.FRAC_GROUPS_RESAMPLED: scored.n_replaced / len(scored.rewards),
            keys.FRAC_GROUPS_LEFT_OUT: n_left_out / len(scored.rewards),
        }

    def spare_of(self, prompts: PromptBatch) -> PromptBatch:
        """Return the spare prompts of a step.

        Raises:
            UserError: the data hands out none.
        """
        if prompts.spare is None:
            raise UserError(f"{type(self).__name__}: got no spare prompts; set the data's `spare_prompts_per_step`")
        return prompts.spare

    def reward_changed(self) -> None:
        """Forget what was learned from earlier rewards: the reward is another one from here on."""


class EveryPrompt(PromptSelection):
    """GRPO: the step's prompts as they come."""

    def forward(self, prompts: PromptBatch, sampling: StepSampling) -> ScoredRollout:
        return sampling.roll_out(prompts)

    def shares(self, scored: ScoredRollout) -> dict[str, float]:
        return {}


def check_shares(where: str, **settings: float) -> None:
    """Raise `UserError` for the first of these settings that is not a number from 0 to 1."""
    for name, value in settings.items():
        if not 0.0 <= value <= 1.0:
            raise UserError(f"{where}{name}: got {value}, expected a number from 0 to 1")
