"""The KL penalty in the reward: its formula, its gradient in exact expectation, and what it leaves alone."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.rollouts import ragged, rollout_of_logprobs

from grpovi_lightning.adjustment import (
    FixedRange,
    IdentityAdjustment,
    KLInReward,
    RunningRange,
    UniformWeights,
    VarianceIncrease,
)
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import K2, GRPOLoss

OLD = [[-1.0, -0.5, -2.0], [-0.25], [-3.0, -1.0], [-0.5, -0.5]]
REF = [[-0.5, -1.0, -2.5], [-1.25], [-1.0, -0.5], [-0.5, -0.5]]
REWARDS = torch.tensor([[0.25, 0.5], [0.75, 0.5]])


def rollout(fill=0.0):
    """P = 2, G = 2; whatever stands in the padding."""
    found = rollout_of_logprobs(REF, 2, fill)
    return replace(found, old_logprobs=ragged(OLD, 3, fill))


@pytest.mark.parametrize("fill", [0.0, math.nan, math.inf])
def test_it_takes_the_log_ratio_of_each_whole_completion_off(fill):
    adjusted = KLInReward(0.5)(REWARDS, rollout(fill)).rewards
    # Sums of old - ref: -0.5 + 0.5 + 0.5, 1, -2 - 0.5, 0.
    assert adjusted.tolist() == [[0.25 - 0.25, 0.5 - 0.5], [0.75 + 1.25, 0.5]]
    assert adjusted.dtype == REWARDS.dtype and REWARDS.tolist() == [[0.25, 0.5], [0.75, 0.5]]


def test_completions_without_a_reward_stay_so_and_move_no_other():
    rewards = REWARDS.clone()
    rewards[0, 1] = torch.nan
    adjusted = KLInReward(0.5)(rewards, rollout()).rewards
    assert adjusted[0, 1].isnan() and adjusted[0, 0] == 0.0 and adjusted[1].tolist() == [2.0, 0.5]


def test_more_padding_changes_nothing():
    wide = rollout()
    pad = {name: torch.nn.functional.pad(getattr(wide, name), (0, 4)) for name in ("completion_ids", "completion_mask")}
    pad |= {
        name: torch.nn.functional.pad(getattr(wide, name), (0, 4), value=9.0)
        for name in ("old_logprobs", "ref_logprobs")
    }
    assert torch.equal(KLInReward(0.5)(REWARDS, replace(wide, **pad)).rewards, KLInReward(0.5)(REWARDS, wide).rewards)


def test_it_comes_after_another_adjustment_which_sees_the_raw_rewards():
    increase = VarianceIncrease(UniformWeights(), FixedRange(0.0, 1.0))
    alone, both = increase(REWARDS, rollout()), KLInReward(0.5, increase)(REWARDS, rollout())
    assert torch.equal(both.increase.rewards, REWARDS) and torch.equal(both.increase.adjusted, alone.rewards)
    penalty = REWARDS - KLInReward(0.5)(REWARDS, rollout()).rewards
    torch.testing.assert_close(both.rewards, alone.rewards - penalty)


def test_a_coefficient_of_0_is_the_other_adjustment_and_needs_no_reference():
    without = replace(rollout(), ref_logprobs=None)
    plain = KLInReward(0.0)
    assert plain(REWARDS, without).rewards is REWARDS
    assert (plain.needs_reference, plain.adjusts) == (False, False)
    increase = VarianceIncrease(UniformWeights(), FixedRange(0.0, 1.0))
    beside = KLInReward(0.0, increase)
    assert torch.equal(beside(REWARDS, without).rewards, increase(REWARDS, without).rewards)
    assert (beside.needs_reference, beside.adjusts, beside.changes_pairs) == (False, True, False)
    for penalty in (KLInReward(0.1), KLInReward(0.1, increase)):
        assert (penalty.needs_reference, penalty.adjusts, penalty.changes_pairs) == (True, True, True)


def test_the_range_of_the_other_adjustment_is_in_the_checkpoint_and_forgets_with_the_reward():
    penalty = KLInReward(0.1, VarianceIncrease(UniformWeights(), RunningRange()))
    penalty(REWARDS, rollout())
    again = KLInReward(0.1, VarianceIncrease(UniformWeights(), RunningRange()))
    again.load_state_dict(penalty.state_dict())
    assert (float(again.adjustment.range.lower), float(again.adjustment.range.upper)) == (0.25, 0.75)
    again.reward_changed()
    assert not math.isfinite(float(again.adjustment.range.lower))


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_a_coefficient_that_is_none_is_refused(beta):
    with pytest.raises(UserError, match=rf"KLInReward beta: got {beta}, expected a finite number of at least 0"):
        KLInReward(beta)


class Tabular:
    """A policy over all completions of two tokens: one distribution for the first, one for the second after each."""

    def __init__(self, seed, n=3):
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = (torch.randn(shape, generator=generator).double() for shape in ((n,), (n, n)))
        self.completions = list(itertools.product(range(n), range(n)))

    def logprobs(self, first, second):
        """[B, 2], of every completion."""
        first, second = first.log_softmax(0), second.log_softmax(1)
        return torch.stack([torch.stack([first[a], second[a, b]]) for a, b in self.completions])


@pytest.mark.parametrize("seed", range(3))
def test_its_expected_gradient_is_that_of_the_divergence_over_completions(seed):
    """Exact expectation over all completions; the loss is that of the trainer, the advantage the penalised reward."""
    policy, reference = Tabular(seed), Tabular(seed + 10)
    logits = [policy.first.requires_grad_(), policy.second.requires_grad_()]
    logprobs = policy.logprobs(*logits)
    with torch.no_grad():
        old, ref = logprobs.clone(), reference.logprobs(reference.first, reference.second)
        mask = torch.ones(9, 2, dtype=torch.bool)
        found = replace(rollout_of_logprobs(ref.tolist(), 9), old_logprobs=old, ref_logprobs=ref)
        penalised = KLInReward(0.3)(torch.zeros(1, 9, dtype=torch.float64), found).rewards
        probabilities = old.sum(1).exp()
    # Each completion weighs its probability; GRPO's mean over 9 sequences of 2 tokens is undone by a factor of 18.
    loss = 18 * GRPOLoss()(logprobs, old, penalised.flatten() * probabilities, mask).loss
    gradient = torch.autograd.grad(loss, logits, retain_graph=True)

    whole = (logprobs.sum(1).exp() * (logprobs.sum(1) - ref.sum(1))).sum()
    expected = torch.autograd.grad(0.3 * whole, logits, retain_graph=True)
    for got, want in zip(gradient, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)

    # In the loss, even k2 does not see what the first token does to the divergence of the second.
    in_loss = (probabilities[:, None] * 0.3 * K2()(logprobs, ref)).sum()
    first, second = torch.autograd.grad(in_loss, logits)
    torch.testing.assert_close(second, expected[1], rtol=1e-10, atol=1e-12)
    assert (first - expected[0]).norm() > 0.05 * expected[0].norm()


def test_without_an_adjustment_it_keeps_none():
    assert isinstance(KLInReward(0.1).adjustment, IdentityAdjustment)
    assert KLInReward(0.1)(REWARDS, rollout()).increase is None
