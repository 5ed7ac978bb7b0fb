"""The completions with the largest rewards: a control."""

from torch import Tensor

from grpovi_lightning.selection.completions import CompletionSelection, largest_first
from grpovi_lightning.structures import Rollout


class TopSelection(CompletionSelection):
    """The m largest rewards: the control for `MaxVarianceSelection` that costs as much and does not seek variance.

    The paper on PODS (arXiv 2504.13818) compares with it. It is `MaxVarianceSelection` with k = m throughout. Of equal
    rewards the completion that was sampled first is taken. With m = G it is GRPO.
    """

    def choose(self, rewards: Tensor, rollout: Rollout, seed: int) -> Tensor:
        return largest_first(rewards)[:, : self.keep]
