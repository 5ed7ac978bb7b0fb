"""What other methods would have made of the completions that a run kept, without training.

Only what comes after the rewards is done again: selection, adjustment, advantages and, where a policy is given, the
gradient. The completions are those that the run's own policy sampled, so this says how methods differ on the same
step, and not how they would have gone on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from grpovi_lightning.adjustment import Adjusted, Adjustment, IdentityAdjustment
from grpovi_lightning.advantages import Advantage, GroupAdvantage
from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.kept_steps import KeptStep
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.models import LanguageModel
from grpovi_lightning.modules import GRPOModule
from grpovi_lightning.modules.update_settings import UpdateSettings
from grpovi_lightning.modules.updater import PolicyUpdater
from grpovi_lightning.selection import CompletionSelection, EveryCompletion, ScoredRollout
from grpovi_lightning.selection.prompts import PromptTable

GRPO = "grpo"
"""Name of the method that all others are compared with."""


@dataclass(frozen=True)
class Learned:
    """What a method made of one step.

    Attributes:
        scored: the completions that it learns from, and their raw rewards [P, m].
        adjusted: what its adjustment made of the rewards.
        advantages: [P, m].
    """

    scored: ScoredRollout
    adjusted: Adjusted
    advantages: Tensor


@dataclass(frozen=True)
class Method:
    """What lies between the rewards of a step and the gradient."""

    selection: CompletionSelection
    adjustment: Adjustment
    advantage: Advantage
    updater: PolicyUpdater

    @staticmethod
    def of(module: GRPOModule) -> "Method":
        """Return that of a module, which need not have loaded its models."""
        # Log-probabilities of single tokens are not kept, so nothing can be corrected by them.
        settings = replace(module.updater.settings, importance_sampling=None)
        updater = PolicyUpdater(module.updater.loss, settings, module.updater.temperature)
        return Method(module.selection, module.adjustment, module.advantage, updater)

    @staticmethod
    def grpo(temperature: float) -> "Method":
        """Return plain GRPO, without a penalty."""
        updater = PolicyUpdater(GRPOLoss(), UpdateSettings(), temperature)
        return Method(EveryCompletion(), IdentityAdjustment(), GroupAdvantage(), updater)

    def learn(self, steps: Sequence[KeptStep], seed: int) -> list[Learned]:
        """Go over the steps in their order, because a range may remember earlier rewards.

        Raises:
            TrainingError: rewards are outside of what the method is defined for.
            UserError: the adjustment needs the reference policy, which did not score the completions.
        """
        learned = []
        for step in steps:
            if self.adjustment.needs_reference and step.pool.rollout.ref_logprobs is None:
                raise UserError(
                    f"{type(self.adjustment).__name__} needs the reference policy, and the run did not score its "
                    "completions by it; replay a run with beta above 0 in its loss"
                )
            scored = self.selection(step.pool, seed)
            adjusted = self.adjustment(scored.rewards, scored.rollout)
            lengths = scored.rollout.grouped(scored.rollout.lengths)
            learned.append(Learned(scored, adjusted, self.advantage(adjusted.rewards, lengths)))
        return learned

    def gradient(self, policy: LanguageModel, learned: Learned, table: PromptTable) -> Tensor:
        """Return the gradient of the loss at a policy, as if it had sampled the completions itself, [parameters].

        It stands for the reference, too, where penalties by k2 and k3 do not pull.
        """
        rollout = learned.scored.rollout
        prompts = table.prompts(rollout.prompts.indices.tolist())
        ids, mask = policy.encode_prompts(prompts.contents, rollout.completion_ids.shape[1])
        # What the sampler gave to single tokens is not known, and nothing reads it: the policy's own stand for them.
        unknown = rollout.old_logprobs.float()
        rollout = replace(rollout, prompts=prompts, prompt_ids=ids, prompt_mask=mask, old_logprobs=unknown)
        if self.updater.loss.needs_reference:
            rollout = replace(rollout, ref_logprobs=self.updater.logprobs(policy, rollout))
        experience = self.updater.experience(policy, rollout, learned.scored.rewards, learned.advantages, "")
        policy.zero_grad()
        self.updater.gradient(policy, experience, list(range(len(prompts))))
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in policy.parameters()]
        return torch.cat([each.flatten() for each in gradients])


def reproduced(steps: Sequence[KeptStep], learned: Sequence[Learned]) -> tuple[int, int, float]:
    """Compare the advantages that a run logged with those that its own method gives now.

    Returns:
        how many are equal to the last bit, how many there are, and the largest difference.
    """
    equal = count = 0
    largest = 0.0
    for step, made in zip(steps, learned, strict=True):
        ours = made.scored.of_pool(made.advantages.double(), step.advantages)
        kept = ~(ours.isnan() & step.advantages.isnan())
        equal, count = equal + int((ours == step.advantages).sum()), count + int(kept.sum())
        difference = (ours - step.advantages).abs()[kept].nan_to_num(nan=torch.inf)
        largest = max(largest, float(difference.max()) if len(difference) else 0.0)
    return equal, count, largest


def compare(
    methods: Mapping[str, Method],
    steps: Sequence[KeptStep],
    seed: int,
    policy: LanguageModel | None = None,
    table: PromptTable | None = None,
) -> tuple[pd.DataFrame, dict[str, list[Learned]]]:
    """Let each method learn from the same steps.

    Args:
        methods: name -> method; the first one is what the others are compared with.
        steps: as they were kept.
        seed: of choices that are left to chance.
        policy: where gradients are taken, on the last step; None: nowhere.
        table: the prompts, for the gradients.

    Returns:
        a row for each method, and what each made of every step. Columns: `completions` and `tokens` (shares of the
        sampled ones that are learned from), `variance` (of adjusted rewards within a group, mean over groups),
        `effective` (completions that carry a group's advantages: `(sum |A|)^2 / sum A^2`, mean over groups that have
        any), `magnitude` (mean |A|), `cosine` (of all advantages with those of the first method), `sign_flips` (share
        of completions whose advantage has the other sign), `gradient_cosine` (NaN without a policy).
    """
    rows, made, first_gradient = {}, {}, None
    for name, method in methods.items():
        try:
            made[name] = method.learn(steps, seed)
        except (TrainingError, UserError) as error:
            raise UserError(f"{name}: {error}") from error
        rows[name] = _row(steps, made[name], next(iter(made.values())))
        rows[name]["gradient_cosine"] = torch.nan
        if policy is not None and table is not None:
            gradient = method.gradient(policy, made[name][-1], table)
            first_gradient = gradient if first_gradient is None else first_gradient
            rows[name]["gradient_cosine"] = float(cosine_similarity(gradient.double(), first_gradient.double(), dim=0))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method"), made


def _row(steps: Sequence[KeptStep], learned: Sequence[Learned], first: Sequence[Learned]) -> dict[str, float]:
    advantages, theirs = (
        torch.cat(
            [
                each.scored.of_pool(each.advantages.double(), step.advantages).nan_to_num(nan=0.0)
                for step, each in zip(steps, of, strict=True)
            ]
        )
        for of in (learned, first)
    )
    scored = [~each.scored.rewards.isnan() for each in learned]
    lengths = [each.scored.rollout.grouped(each.scored.rollout.lengths) for each in learned]
    total, square = advantages.abs().sum(dim=1), advantages.square().sum(dim=1)
    has_any = total > 0
    return {
        "completions": sum(int(each.sum()) for each in scored) / advantages.numel(),
        "tokens": sum(int(length[of].sum()) for length, of in zip(lengths, scored, strict=True))
        / sum(int(step.pool.rollout.lengths.sum()) for step in steps),
        "variance": float(torch.cat([_variances(each.adjusted.rewards) for each in learned]).nanmean()),
        "effective": float((total[has_any].square() / square[has_any]).mean()),
        "magnitude": float(advantages.abs().mean()),
        "cosine": float(cosine_similarity(advantages.flatten(), theirs.flatten(), dim=0)),
        "sign_flips": float((advantages.sign() * theirs.sign() < 0).double().mean()),
    }


def _variances(rewards: Tensor) -> Tensor:
    """Return the variance of each group [P, m] -> [P] over the completions that have a reward."""
    values = rewards.double()
    return (values - values.nanmean(dim=1, keepdim=True)).square().nanmean(dim=1)
