"""A curriculum of prompts whose rewards vary: VCRL."""

from dataclasses import replace

import torch

from grpovi_lightning.distributed import gather_rows, largest_over_ranks, rows_of_rank
from grpovi_lightning.errors import at_least_one
from grpovi_lightning.selection.memory import MemoryBank
from grpovi_lightning.selection.prompts import PromptSelection, StepSampling, check_shares
from grpovi_lightning.selection.scored import ScoredRollout
from grpovi_lightning.selection.spread import RunningSpread
from grpovi_lightning.structures import PromptBatch


class VarianceCurriculum(PromptSelection):
    """Learns from prompts with p >= threshold, p = group variance / largest possible one (VCRL, arXiv 2509.19803).

    For k successes of G, p = k (G - k) / (floor(G / 2) ceil(G / 2)). Instead of a prompt below the threshold, that of
    the highest priority comes from a memory bank of prompts that reached it, with fresh completions. Places that the
    bank cannot fill are left out of the loss. With threshold 0 it is GRPO.

    Where we depart: rewards need not be 0 or 1, because p is taken within the range of the run's rewards so far. The
    paper's threshold, capacity and momentum could not be read, so all are required; nor could how it moves priorities:
    here to momentum * priority + (1 - momentum) * p, and a prompt that falls below the threshold leaves the bank.
    """

    looks_up = True

    def __init__(self, threshold: float, capacity: int, momentum: float) -> None:
        """Set the threshold on p, prompts in the bank, and how much a priority keeps when p is measured again."""
        super().__init__()
        check_shares("variance curriculum ", threshold=threshold, momentum=momentum)
        at_least_one("variance curriculum ", capacity=capacity)
        self.threshold, self.bank, self.spread = threshold, MemoryBank(capacity, momentum), RunningSpread()

    def forward(self, prompts: PromptBatch, sampling: StepSampling) -> ScoredRollout:
        scored, mine = sampling.roll_out(prompts), rows_of_rank(len(prompts))
        numbers, p = self._measured(scored)  # of all ranks
        low = [place for place, value in enumerate(p) if value < self.threshold]
        replayed = self.bank.first(len(low), without=set(numbers))
        self.bank.measure(dict(zip(numbers, p, strict=True)), self.threshold)
        here = {place - mine.start: n for place, n in zip(low, replayed, strict=False) if place in mine}
        if wanted := largest_over_ranks(len(here)):
            # Every rank samples as many; those that have no place here are thrown away.
            again = [*here.values(), *(n for n in replayed if n not in here.values())][:wanted]
            fresh = sampling.roll_out(sampling.table.prompts(again).to(prompts.indices.device))
            scored = scored.replaced(list(here), fresh, range(len(here)))
            numbers, p = self._measured(scored)
            self.bank.measure({n: v for n, v in zip(numbers, p, strict=True) if n in replayed}, self.threshold)
        left_out = torch.tensor([p[place] < self.threshold for place in mine], device=scored.rewards.device)
        return replace(scored, left_out=left_out)

    def _measured(self, scored: ScoredRollout) -> tuple[list[int], list[float]]:
        return gather_rows(scored.rollout.prompts.indices).tolist(), self.spread(gather_rows(scored.rewards))

    def reward_changed(self) -> None:
        self.bank.values.clear()
        self.spread.clear()
