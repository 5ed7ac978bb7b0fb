"""GRPO: the mean over sequences of the mean over tokens."""

from grpovi_lightning.losses.clipped import ClippedLoss
from grpovi_lightning.losses.sequence_mean import SequenceMeanLoss


class GRPOLoss(SequenceMeanLoss, ClippedLoss):
    """Clipped surrogate with a KL penalty, as in DeepSeekMath (arXiv 2402.03300, equation 3).

        1 / B sum_b 1 / |y_b| sum_t [ -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) + beta k3 ]

    A token of a short completion weighs more than one of a long completion.

    >>> import torch
    >>> logprobs, mask = torch.zeros(2, 2), torch.tensor([[True, True], [True, False]])
    >>> loss = GRPOLoss()(logprobs, logprobs, torch.tensor([4.0, -2.0]), mask).loss
    >>> loss.item()  # the mean of (-4 - 4) / 2 and 2 / 1
    -1.0
    """
