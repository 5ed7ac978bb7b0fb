"""Advantages relative to the mean of the group, whitened over all tokens: those of REINFORCE++ with group baseline."""

import torch
from torch import Tensor

from grpovi_lightning.advantages.base import Advantage
from grpovi_lightning.distributed import gather_rows
from grpovi_lightning.ops.masked import centred

_EPS = 1e-8


class ReinforcePlusPlusAdvantage(Advantage):
    """REINFORCE++ with group baseline: (a - mean) / sqrt(var + 1e-8), a = r - mean of the group (arXiv 2501.03262).

    Mean and variance (Bessel) are those of a over the tokens of the global batch, all ranks together: a completion
    counts as often as it has tokens. Completions without a reward do not count. The constant is verl's.

    Whitening shifts all advantages alike. So a group of equal rewards, or with one scored completion, has the same
    advantage everywhere, but 0 only where a has no correlation with the length, or where no reward of the batch
    differs from those of its group. Where all completions are equally long it is `GroupAdvantage` with `scale_rewards:
    none`, divided by the standard deviation of these advantages. The KL penalty is a setting of the loss here.

    >>> lengths = torch.tensor([[1, 3], [2, 2]])
    >>> found = ReinforcePlusPlusAdvantage()(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), lengths)  # a: 0.5, -0.5, 0, 0
    >>> [[round(value, 3) for value in group] for group in found.tolist()]  # mean -1 / 8, variance 0.125
    [[1.768, -1.061], [0.354, 0.354]]
    """

    needs_lengths = True

    @property
    def ignores_scale(self) -> bool:
        return True

    def advantages(self, rewards: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        values = centred(rewards, scored)
        everything, tokens = gather_rows(torch.stack([values, torch.where(scored, lengths, 0.0)], dim=1)).unbind(dim=1)
        count = tokens.sum()
        mean = (tokens * everything).sum() / count.clamp(min=1.0)
        variance = (tokens * (everything - mean).square()).sum() / (count - 1.0).clamp(min=1.0)
        return (values - mean) / (variance + _EPS).sqrt()
