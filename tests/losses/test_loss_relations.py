"""How the members of the family differ and where they are the same."""

import pytest
import torch
from losses.loss_batches import (
    CLIPPED,
    LONGEST,
    LOSSES,
    PENALISED,
    SHARING,
    Batch,
    random_batch,
    random_weights,
    value_and_gradient,
)

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.losses import BNPOLoss, CISPOLoss, DAPOLoss, DrGRPOLoss, GRPOLoss, GSPOLoss, PolicyLoss
from grpovi_lightning.losses.base import Surrogate


def same(one, other, factor=1.0):
    """Whether two (value, gradient) agree, the second multiplied."""
    assert one[0] == pytest.approx(other[0] * factor, rel=1e-12)
    torch.testing.assert_close(one[1], other[1] * factor, rtol=1e-12, atol=0)


def share_of_tokens(loss, mask):
    """What a token's loss counts in the whole, as `total` and `denominator` of the loss have it."""
    token_loss = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(loss.total(token_loss, mask) / loss.denominator(mask), token_loss)[0]


def test_what_is_found_out_about_the_losses_is_so():
    known = {"grpo", "bnpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo", "gmpo", "dppo", "entropy_bonus", "clipped"}
    assert known <= LOSSES.keys()
    assert known.intersection(SHARING) == {"gspo", "gmpo"} and known.intersection(PENALISED) == {"entropy_bonus"}
    assert known.intersection(CLIPPED) == {"grpo", "bnpo", "dapo", "dr_grpo", "gspo", "clipped"}


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in PENALISED])
def test_at_ratio_1_every_loss_has_the_gradient_of_minus_advantage_times_logprob(name):
    batch = random_batch(0)
    batch = batch._replace(old_logprobs=batch.logprobs.clone())
    mask, lengths = batch.completion_mask, batch.completion_mask.sum(1, keepdim=True)
    by_name = {
        "grpo": 1 / lengths / 6,
        "gspo": 1 / lengths / 6,
        "sapo": 1 / lengths / 6,
        "gmpo": 1 / lengths / 6,
        "dr_grpo": torch.tensor(1 / (6 * LONGEST), dtype=torch.float64),
        **dict.fromkeys(("bnpo", "dapo", "clipped", "cispo", "dppo"), 1 / mask.sum()),
    }
    share = by_name[name] if name in by_name else share_of_tokens(LOSSES[name](), mask)
    expected = torch.where(mask, -batch.advantages[:, None] * share, 0.0)
    torch.testing.assert_close(value_and_gradient(LOSSES[name](), batch)[1], expected, rtol=1e-6, atol=0)

    weights = random_weights(0, batch)
    if name not in SHARING:
        weighted = value_and_gradient(LOSSES[name](), batch, sampling_weights=weights)[1]
        torch.testing.assert_close(weighted, expected * weights, rtol=1e-6, atol=0)


def test_gspo_shares_the_sampling_weights_of_a_sequence_among_its_tokens():
    batch = random_batch(0)
    batch = batch._replace(old_logprobs=batch.logprobs.clone())
    weights, mask = random_weights(0, batch), batch.completion_mask
    _, gradient = value_and_gradient(GSPOLoss(), batch, sampling_weights=weights)
    mean = (weights * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(gradient.sum(1), -batch.advantages * mean / 6, rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_token_aggregated_losses_are_one_sum_over_different_counts(seed):
    batch = random_batch(seed)
    settings = {"beta": 0.1, "epsilon_high": 0.3, "delta": 1.4}
    bnpo = value_and_gradient(BNPOLoss(**settings), batch)
    same(value_and_gradient(DAPOLoss(**settings), batch), bnpo)
    share_of_longest = batch.completion_mask.sum().item() / (6 * LONGEST)
    same(value_and_gradient(DrGRPOLoss(LONGEST, **settings), batch), bnpo, share_of_longest)


def test_where_all_completions_are_equally_long_grpo_and_bnpo_are_the_same():
    batch = random_batch(1)._replace(completion_mask=torch.ones(6, 9, dtype=torch.bool))
    same(value_and_gradient(GRPOLoss(beta=0.1), batch), value_and_gradient(BNPOLoss(beta=0.1), batch))
    same(value_and_gradient(DrGRPOLoss(9, beta=0.1), batch), value_and_gradient(BNPOLoss(beta=0.1), batch))


@pytest.mark.parametrize("settings", [{}, {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 1.5, "beta": 0.1}], ids=str)
def test_for_completions_of_one_token_gspo_is_grpo(settings):
    batch = random_batch(2)._replace(completion_mask=torch.arange(9).expand(6, 9) == 0)
    grpo, gspo = GRPOLoss(**{"epsilon": 0.2} | settings), GSPOLoss(**{"epsilon": 0.2, "epsilon_high": 0.2} | settings)
    same(value_and_gradient(gspo, batch), value_and_gradient(grpo, batch))
    assert gspo(*batch).metrics == grpo(*batch).metrics


def test_gspo_clips_all_tokens_of_a_sequence_together():
    # One token doubles and one halves: as a sequence nothing has happened, as tokens both are out of range.
    lp = torch.tensor([[0.7, -0.7], [0.7, 0.7]], dtype=torch.float64)
    batch = Batch(lp, torch.zeros_like(lp), torch.tensor([1.0, 1.0]), torch.ones(2, 2, dtype=torch.bool), None)
    _, by_token = value_and_gradient(GRPOLoss(), batch)
    _, by_sequence = value_and_gradient(GSPOLoss(epsilon=0.2), batch)
    assert by_token.ne(0).tolist() == [[False, True], [False, False]]
    torch.testing.assert_close(by_sequence, torch.tensor([[-0.25, -0.25], [0, 0]]).double())


def test_gspo_counts_the_tokens_of_clipped_sequences_and_leaves_empty_ones_out():
    lp = torch.tensor([0.5, -0.5, 0.5, 0.5]).double()[:, None].expand(4, 3)
    mask = torch.arange(3) < torch.tensor([[3], [1], [1], [0]])
    metrics = GSPOLoss()(lp, torch.zeros_like(lp), torch.tensor([1.0, -1.0, -1.0, 1.0]), mask).metrics
    assert metrics[keys.CLIP_RATIO_HIGH_MEAN].item() == pytest.approx(3 / 5)
    assert metrics[keys.CLIP_RATIO_LOW_MEAN].item() == pytest.approx(1 / 5)
    assert metrics[keys.CLIP_RATIO_REGION_MEAN].item() == pytest.approx(4 / 5)


def test_cispo_keeps_a_gradient_where_the_clip_range_cuts_it_off():
    lp = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    batch = Batch(lp, torch.zeros_like(lp), torch.tensor([1.0, -1.0]), torch.ones(2, 1, dtype=torch.bool), None)
    assert (value_and_gradient(GRPOLoss(), batch)[1] == 0).all()
    _, gradient = value_and_gradient(CISPOLoss(), batch)
    assert gradient.flatten().tolist() == pytest.approx([-5.0 / 2, torch.tensor(-2.0).exp().item() / 2])


def test_cispo_counts_capped_tokens_of_positive_advantage_as_trl_does():
    ratio = torch.tensor([[6.0, 4.0, 6.0], [6.0, 1.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    metrics = CISPOLoss()(ratio.log(), torch.zeros(2, 3), torch.tensor([1.0, -1.0]), mask).metrics
    assert set(metrics) == {keys.CISPO_CLIP_RATIO}
    assert metrics[keys.CISPO_CLIP_RATIO].item() == pytest.approx(2 / 5)


@pytest.mark.parametrize("name", CLIPPED)
def test_delta_does_not_change_what_counts_as_clipped(name):
    batch = random_batch(3)
    assert LOSSES[name](delta=1.3)(*batch).metrics == LOSSES[name]()(*batch).metrics


def test_a_loss_of_ones_own_is_a_surrogate():
    class Plain(PolicyLoss):
        def surrogate(self, inputs):
            return Surrogate(-inputs.advantages * inputs.logprobs, {})

    batch = random_batch(4)
    value, gradient = value_and_gradient(Plain(beta=0.1), batch)
    on_policy = batch._replace(old_logprobs=batch.logprobs)
    expected, slope = value_and_gradient(CISPOLoss(beta=0.1), on_policy)
    assert value == pytest.approx(expected)
    torch.testing.assert_close(gradient, slope)
