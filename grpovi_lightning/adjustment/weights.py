"""How much each completion of a group counts: the p_i of the variance increase, as unnormalised logs.

One prompt with two completions, to which the reference gives probabilities of 0.25 (two tokens of 0.5 each) and 0.75:

>>> from grpovi_lightning.structures import PromptBatch
>>> ids, mask = torch.ones(2, 2, dtype=torch.long), torch.tensor([[True, True], [True, False]])
>>> logprobs = torch.tensor([[0.5, 0.5], [0.75, 1.0]]).log()
>>> rollout = Rollout(PromptBatch(["a prompt"], torch.tensor([0]), {}), 2, 0, ids[:1], mask[:1], ids, mask,
...                   logprobs, ~mask[:, 0], ["one", "two"], ref_logprobs=logprobs)
>>> for weights in (SequenceWeights(), SequenceWeights(temperature=2.0), TokenMeanWeights(), UniformWeights()):
...     print([round(p, 3) for p in weights(rollout)[0].softmax(dim=0).tolist()])
[0.25, 0.75]
[0.366, 0.634]
[0.4, 0.6]
[0.5, 0.5]
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.ops import masked_sum
from grpovi_lightning.structures import Rollout


class CompletionWeights(ABC):
    """Rollout -> log weights of its completions."""

    needs_reference: bool = False
    """Whether the rollout must carry the reference policy's log-probabilities."""

    @abstractmethod
    def __call__(self, rollout: Rollout) -> Tensor:
        """Return the unnormalised natural logs of the weights, [P, G] float64."""


class SequenceWeights(CompletionWeights):
    """p_i proportional to pi_ref(y_i | x) ** (1 / temperature): the paper's weights at temperature 1.

    The log-probability of a completion is a sum over its tokens, so in a group of long completions nearly all the
    weight goes to one of them; the metric `adjustment/effective_weights` shows how far. A temperature above 1
    flattens the weights; infinity would be `UniformWeights`.
    """

    needs_reference = True

    def __init__(self, temperature: float = 1.0) -> None:
        """Set the temperature.

        Args:
            temperature: divides the log-probabilities; a finite number above 0.
        """
        if not 0.0 < temperature < float("inf"):
            raise UserError(f"weights temperature: got {temperature}, expected a finite number above 0")
        self.temperature = temperature

    def __call__(self, rollout: Rollout) -> Tensor:
        assert rollout.ref_logprobs is not None, "the rollout lacks reference log-probabilities"
        total = masked_sum(rollout.ref_logprobs.double(), rollout.completion_mask, dim=1)
        return rollout.grouped(self._scale(total, rollout) / self.temperature)

    def _scale(self, total: Tensor, rollout: Rollout) -> Tensor:
        return total


class TokenMeanWeights(SequenceWeights):
    """p_i proportional to pi_ref(y_i | x) ** (1 / (length * temperature)): length-normalised.

    A departure from the paper that keeps the weights comparable over completions of any length.
    """

    def _scale(self, total: Tensor, rollout: Rollout) -> Tensor:
        return total / rollout.lengths.clamp(min=1)


class UniformWeights(CompletionWeights):
    """p_i = 1 / G: the completions were already sampled with the policy's probabilities."""

    def __call__(self, rollout: Rollout) -> Tensor:
        shape = (len(rollout.prompts), rollout.group_size)
        return torch.zeros(shape, dtype=torch.float64, device=rollout.completion_ids.device)
