"""Completions at random: a control."""

import torch
from torch import Tensor

from grpovi_lightning.randomness import keeping_uniforms
from grpovi_lightning.selection.completions import CompletionSelection, largest_first
from grpovi_lightning.structures import Rollout


class RandomSelection(CompletionSelection):
    """Any m completions, each set as probable as another: the control that shows what a selection by reward adds.

    The paper on PODS (arXiv 2504.13818) compares with it. The choice depends on (seed, step, prompt) alone, so neither
    ranks nor the batch change it. It is uniform over completions that have a reward. With m = G it is GRPO.
    """

    def choose(self, rewards: Tensor, rollout: Rollout, seed: int) -> Tensor:
        numbers = keeping_uniforms(seed, rollout.step, rollout.prompts.indices, rewards.shape[1]).to(rewards.device)
        return largest_first(numbers.masked_fill(rewards.isnan(), torch.nan))[:, : self.keep]
