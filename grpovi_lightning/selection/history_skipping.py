"""Prompts without reward variance in earlier rounds are skipped: GRESO."""

from dataclasses import replace

from grpovi_lightning.distributed import gather_rows, rows_of_rank
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops.masked import differs
from grpovi_lightning.randomness import skipping_uniforms
from grpovi_lightning.selection.memory import PromptMemory
from grpovi_lightning.selection.prompts import PromptSelection, StepSampling, check_shares
from grpovi_lightning.selection.scored import ScoredRollout
from grpovi_lightning.structures import PromptBatch


class HistorySkipping(PromptSelection):
    """Skips a prompt before it is sampled, with probability 1 - max(exploration^z, least) (GRESO, arXiv 2506.02177).

    z is how many of the prompt's latest groups in a row had no reward variance. Spare prompts that are not skipped take
    the places; where they do not suffice, the others are sampled after all. With exploration 1 it is GRPO.

    Where we depart: exploration is fixed. The authors' code begins with 0.5 and moves it by 0.01 a step towards target
    shares of all-right and all-wrong groups, which rewards other than 0 and 1 do not have. It also replaces sampled
    groups without variance, as `DynamicResampling` does. The least probability could not be read, so it is required.
    """

    needs_spare = looks_up = True

    def __init__(self, exploration: float, least: float) -> None:
        """Set both probabilities, `least` above 0 and at most `exploration`."""
        super().__init__()
        check_shares("history skipping ", exploration=exploration)
        if not 0.0 < least <= exploration:
            raise UserError(f"history skipping least: got {least}, expected above 0, at most exploration {exploration}")
        self.exploration, self.least, self.rounds = exploration, least, PromptMemory()

    def forward(self, prompts: PromptBatch, sampling: StepSampling) -> ScoredRollout:
        own, spare = (gather_rows(batch.indices).tolist() for batch in (prompts, self.spare_of(prompts)))
        skipped = self._skipped(own + spare, sampling)
        others = (number for number in spare if number not in skipped)
        begun = [next(others, number) if number in skipped else number for number in own]
        mine = [begun[row] for row in rows_of_rank(len(prompts))]
        n_replaced = sum(a != b for a, b in zip(mine, prompts.indices.tolist(), strict=True))
        scored = sampling.roll_out(sampling.table.prompts(mine).to(prompts.indices.device) if n_replaced else prompts)
        varied = gather_rows(differs(scored.rewards, ~scored.rewards.isnan())).flatten().tolist()
        for number, has_variance in zip(begun, varied, strict=True):
            self.rounds.values[number] = 0 if has_variance else self.rounds.values.get(number, 0) + 1
        return replace(scored, n_replaced=n_replaced)

    def _skipped(self, numbers: list[int], sampling: StepSampling) -> set[int]:
        draws = zip(numbers, skipping_uniforms(sampling.seed, sampling.step, numbers), strict=True)
        return {n for n, draw in draws if draw >= max(self.exploration ** self.rounds.values.get(n, 0), self.least)}

    def reward_changed(self) -> None:
        self.rounds.values.clear()
