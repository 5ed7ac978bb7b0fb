"""Dynamic sampling: groups without reward variance are replaced by other prompts' groups."""

from grpovi_lightning.distributed import largest_over_ranks
from grpovi_lightning.errors import at_least_one
from grpovi_lightning.selection.prompts import PromptSelection, StepSampling
from grpovi_lightning.selection.scored import ScoredRollout
from grpovi_lightning.structures import PromptBatch


class DynamicResampling(PromptSelection):
    """Replaces groups whose rewards are all equal by groups of spare prompts (DAPO, arXiv 2503.14476, section 3.2).

    DAPO samples until the batch is full. Here a step tries a bounded number of times and keeps the groups without
    variance that are left. Every token that is sampled counts in `num_tokens`, also of groups that are thrown away.
    """

    needs_spare = True

    def __init__(self, max_tries: int = 3) -> None:
        """Set the bound.

        Args:
            max_tries: how often a step samples again; the data module must hand out `spare_prompts_per_step`.
        """
        super().__init__()
        at_least_one("dynamic resampling ", max_tries=max_tries)
        self.max_tries = max_tries

    def forward(self, prompts: PromptBatch, sampling: StepSampling) -> ScoredRollout:
        """Replace groups without reward variance by those of the spare prompts.

        Raises:
            UserError: the data hands out no spare prompts.
        """
        spare = self.spare_of(prompts)
        scored, used = sampling.roll_out(prompts), 0
        for _ in range(self.max_tries):
            zero_variance = scored.zero_variance_groups()
            # The rank that needs the most decides, so that all ranks sample as often.
            wanted = largest_over_ranks(min(len(zero_variance), len(spare) - used))
            if wanted == 0:
                break
            scored = scored.replaced(zero_variance, sampling.roll_out(spare.select(range(used, used + wanted))))
            used += wanted
        return scored
