"""The KL penalty in the reward, before the advantages, instead of in the loss."""

from torch import Tensor

from grpovi_lightning.adjustment.adjustments import Adjusted, Adjustment, IdentityAdjustment
from grpovi_lightning.errors import UserError
from grpovi_lightning.ops import masked_sum
from grpovi_lightning.structures import Rollout


class KLInReward(Adjustment):
    """r - beta sum_t ( old_logprob_t - ref_logprob_t ): k1 of the whole completion, as in PPO and TRL's RLOO.

    Where the policy itself sampled, its expected gradient is that of beta KL(policy || reference) over completions, up
    to the scale and the length weights that advantage and loss put on every reward. What a token does to the divergence
    of later ones is in it, which no estimator in the loss has (arXiv 2510.01555, 2512.21852). With advantages that are
    divided by a standard deviation of about 1 it pulls about as hard as the same `beta` in `GRPOLoss`.

    It comes after another adjustment, whose range and weights see raw rewards alone. The logged reward is the raw one.
    With 0 it is the other adjustment. `beta` of the loss is a penalty of its own: set it to 0 for this one alone.

    >>> import torch
    >>> from grpovi_lightning.structures import PromptBatch
    >>> ids, mask = torch.ones(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool)
    >>> rollout = Rollout(PromptBatch(["a prompt"], torch.tensor([0]), {}), 2, 0, ids[:1], mask[:1], ids, mask,
    ...                   torch.tensor([[-1.0], [-3.0]]), ~mask[:, 0], ["one", "two"],
    ...                   ref_logprobs=torch.tensor([[-2.0], [-1.0]]))
    >>> KLInReward(beta=0.5)(torch.tensor([[1.0, 1.0]]), rollout).rewards.tolist()  # the reference likes the second
    [[0.5, 2.0]]
    """

    def __init__(self, beta: float, adjustment: Adjustment | None = None) -> None:
        """Put the penalty behind an adjustment.

        Args:
            beta: coefficient of the penalty, in units of the reward a nat; at least 0.
            adjustment: what happens to the raw rewards first; default nothing.
        """
        super().__init__()
        if not 0.0 <= beta < float("inf"):
            raise UserError(f"KLInReward beta: got {beta}, expected a finite number of at least 0")
        self.beta, self.adjustment = beta, adjustment or IdentityAdjustment()
        self.needs_reference = beta > 0 or self.adjustment.needs_reference
        self.changes_pairs = beta > 0 or self.adjustment.changes_pairs
        self.adjusts = beta > 0 or self.adjustment.adjusts

    def reward_changed(self) -> None:
        self.adjustment.reward_changed()

    def forward(self, rewards: Tensor, rollout: Rollout) -> Adjusted:
        adjusted = self.adjustment(rewards, rollout)
        if self.beta == 0:
            return adjusted
        assert rollout.ref_logprobs is not None, "the rollout lacks reference log-probabilities"
        both = (rollout.old_logprobs, rollout.ref_logprobs)
        old, ref = (masked_sum(each.double(), rollout.completion_mask, dim=1) for each in both)
        divergence = rollout.grouped(old - ref)
        return adjusted._replace(rewards=(adjusted.rewards - self.beta * divergence).to(rewards.dtype))
