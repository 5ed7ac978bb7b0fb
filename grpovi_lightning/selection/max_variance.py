"""Down-sampling by variance: PODS."""

import torch
from torch import Tensor

from grpovi_lightning.selection.completions import CompletionSelection, largest_first
from grpovi_lightning.structures import Rollout


class MaxVarianceSelection(CompletionSelection):
    """The k largest and the m - k smallest rewards, with the k whose variance is the largest (PODS, arXiv 2504.13818).

    No other m completions of the group have a larger variance. With m = G it is GRPO; with 0/1 rewards it keeps as many
    successes as failures, as far as there are. Of several k with the same variance the largest is taken, and of equal
    rewards the completion that was sampled first, so a group without variance keeps its first m.

    Where we depart: the paper finds k in O(G log G); here each is tried, in O(m^2) after the sort. In the paper all
    completions have a reward; here those without one come last.

    >>> from grpovi_lightning.structures import PromptBatch
    >>> nobody = Rollout.of_texts(PromptBatch([], torch.tensor([]), {}), [])  # it looks at rewards alone
    >>> MaxVarianceSelection(keep=3).choose(torch.tensor([[0.5, 0.9, 0.1, 0.4, 1.0]]), nobody, seed=0).tolist()
    [[4, 1, 2]]
    """

    def choose(self, rewards: Tensor, rollout: Rollout, seed: int) -> Tensor:
        m, order = self.keep, largest_first(rewards)
        n_scored = (~rewards.isnan()).sum(dim=1)[:, None, None]
        k, i = torch.arange(m, -1, -1, device=rewards.device)[:, None], torch.arange(m, device=rewards.device)
        # Ranks [P, m + 1, m] for each k: the first k, and the last m - k that are scored, if there are as many.
        ranks = torch.where(i < k, i, (n_scored - m + i).clamp(min=i))
        places = order[:, None].expand(-1, m + 1, -1).gather(2, ranks)
        # Above the smallest of their group, 0/1 rewards are whole numbers, whose ties the sums show exactly.
        above = (rewards - rewards.nan_to_num(nan=torch.inf).amin(dim=1, keepdim=True)).nan_to_num(nan=0.0)
        values = above.gather(1, places.flatten(1)).view_as(places)
        variance = m * values.square().sum(dim=2) - values.sum(dim=2).square()  # times m^2
        return places[torch.arange(len(places), device=rewards.device), variance.argmax(dim=1)]
