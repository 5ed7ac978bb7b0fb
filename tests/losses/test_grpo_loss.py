import math

import numpy as np
import pytest
import torch
from helpers import grpo_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.errors import UserError
from grpovi_lightning.losses import GRPOLoss
from grpovi_lightning.losses.base import k3_divergence

SETTINGS = [
    {},
    {"epsilon": 0.1, "epsilon_high": 0.4},
    {"beta": 0.3},
    {"beta": 0.04, "epsilon": 0.3, "epsilon_high": 0.05},
]


def batch(seed, n_rows=5, length=7, off_policy=0.6):
    """A ragged batch in float64: (logprobs, old_logprobs, advantages, mask, ref_logprobs)."""
    rng = np.random.default_rng(seed)
    lp = -rng.exponential(1.0, (n_rows, length))
    old, ref = lp + off_policy * rng.normal(size=lp.shape), lp + 0.5 * rng.normal(size=lp.shape)
    mask = np.arange(length) < rng.integers(1, length + 1, (n_rows, 1))
    return tuple(map(torch.tensor, (lp, old, rng.normal(size=n_rows), mask, ref)))


def value_and_gradient(loss, logprobs, *arguments, **settings):
    logprobs = logprobs.detach().clone().requires_grad_()
    output = loss(logprobs, *arguments, **settings)
    output.loss.backward()
    return output.loss.item(), logprobs.grad


@pytest.mark.parametrize("settings_", SETTINGS)
@pytest.mark.parametrize("seed", range(8))
def test_value_and_gradient_are_those_of_the_formula(settings_, seed):
    lp, old, advantages, mask, ref = batch(seed)
    value, gradient = value_and_gradient(GRPOLoss(**settings_), lp, old, advantages, mask, ref)
    expected, slope = grpo_reference.grpo_loss(
        lp.tolist(), old.tolist(), advantages.tolist(), mask.tolist(), ref=ref.tolist(), **settings_
    )
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-10, atol=1e-15)


def test_a_hand_worked_token_of_each_kind():
    ratio = torch.tensor([[1.5], [1.5], [0.5], [0.5]], dtype=torch.float64)
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0], dtype=torch.float64)
    mask = torch.ones(4, 1, dtype=torch.bool)
    # Only a good token that grew too much, and a bad one that shrank too much, are clipped.
    value, gradient = value_and_gradient(GRPOLoss(epsilon=0.2), ratio.log(), torch.zeros(4, 1), advantages, mask)
    assert value == pytest.approx((-1.2 * 2 + 1.5 * 2 - 0.5 * 2 + 0.8 * 2) / 4)
    np.testing.assert_allclose(gradient.flatten(), [0.0, 1.5 * 2 / 4, -0.5 * 2 / 4, 0.0], atol=1e-15)


@given(
    seed=st.integers(0, 99), extra=st.integers(1, 4), junk=st.sampled_from([0.0, -50.0, math.inf, math.nan, -math.inf])
)
@settings(max_examples=60, deadline=None)
def test_more_padding_changes_nothing_whatever_stands_in_it(seed, extra, junk):
    lp, old, advantages, mask, ref = batch(seed)
    loss = GRPOLoss(beta=0.1)
    value, gradient = value_and_gradient(loss, lp, old, advantages, mask, ref)
    # Junk goes into the old padding and into new columns, and differs between the tensors.
    wide = [
        torch.nn.functional.pad(torch.where(mask, tensor, fill), (0, extra), value=fill)
        for tensor, fill in ((lp, junk), (old, 1.0), (ref, -junk))
    ]
    wide_mask = torch.nn.functional.pad(mask, (0, extra))
    padded, padded_gradient = value_and_gradient(loss, wide[0], wide[1], advantages, wide_mask, wide[2])
    assert padded == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(padded_gradient[:, : lp.shape[1]], gradient)
    assert (padded_gradient[~wide_mask] == 0).all()


@pytest.mark.parametrize("sizes", [[1, 4], [2, 2, 1], [1, 1, 1, 1, 1]])
def test_parts_with_the_denominator_of_the_whole_sum_to_the_whole(sizes):
    tensors = batch(3)
    loss = GRPOLoss(beta=0.1)
    value, gradient = value_and_gradient(loss, *tensors)
    parts = [
        value_and_gradient(loss, *part, denominator=5)
        for part in zip(*(tensor.split(sizes) for tensor in tensors), strict=True)
    ]
    assert sum(part[0] for part in parts) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient)


def test_a_denominator_may_be_a_tensor():
    tensors = batch(4)
    assert GRPOLoss()(*tensors[:4], denominator=torch.tensor(10.0)).loss == pytest.approx(
        GRPOLoss()(*tensors[:4]).loss.item() / 2
    )


def test_at_ratio_1_the_gradient_is_that_of_minus_advantage_times_logprob():
    lp, _, advantages, mask, _ = batch(5)
    _, gradient = value_and_gradient(GRPOLoss(), lp, lp.clone(), advantages, mask)
    expected = torch.where(mask, -advantages[:, None] / mask.sum(dim=1, keepdim=True) / 5, 0.0)
    torch.testing.assert_close(gradient, expected)


def test_old_and_reference_log_probabilities_get_no_say_in_the_metrics_gradient():
    lp, old, advantages, mask, ref = batch(6)
    output = GRPOLoss(beta=0.1)(lp.requires_grad_(), old, advantages, mask, ref)
    assert output.loss.requires_grad and not any(value.requires_grad for value in output.metrics.values())


def test_a_sequence_of_one_token_weighs_as_much_as_a_long_one():
    lp = torch.zeros(2, 4, dtype=torch.float64)
    mask = torch.tensor([[True, False, False, False], [True, True, True, True]])
    _, gradient = value_and_gradient(GRPOLoss(), lp, lp.clone(), torch.tensor([1.0, 1.0]), mask)
    assert gradient.sum(dim=1).tolist() == [-0.5, -0.5]


def test_a_sequence_without_tokens_adds_nothing_but_counts():
    lp, old, advantages, mask, _ = batch(7, n_rows=2)
    mask[0] = False
    alone = GRPOLoss()(lp[1:], old[1:], advantages[1:], mask[1:]).loss
    torch.testing.assert_close(GRPOLoss()(lp, old, advantages, mask).loss, alone / 2)


def test_clip_ratios_are_the_shares_of_tokens_whose_gradient_is_cut_off():
    ratio = torch.tensor([[0.5, 1.0, 1.5, 0.5], [0.5, 1.5, 1.1, 1.5]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    advantages = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    metrics = GRPOLoss(epsilon=0.2)(ratio.log(), torch.zeros(2, 4), advantages, mask).metrics
    # Negative row: one of its three tokens is below. Positive row: two of four are above.
    assert metrics[keys.CLIP_RATIO_LOW_MEAN].item() == pytest.approx(1 / 7)
    assert metrics[keys.CLIP_RATIO_HIGH_MEAN].item() == pytest.approx(2 / 7)
    assert metrics[keys.CLIP_RATIO_REGION_MEAN].item() == pytest.approx(3 / 7)
    assert keys.KL not in metrics


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_kl_is_the_mean_of_k3_over_tokens_and_is_reported_without_penalty_too(beta):
    lp, old, advantages, mask, ref = batch(8)
    kept = [(b, t) for b, t in np.ndindex(*mask.shape) if mask[b, t]]
    expected = np.mean([grpo_reference.k3(lp[b, t].item(), ref[b, t].item()) for b, t in kept])
    assert GRPOLoss(beta=beta)(lp, old, advantages, mask, ref).metrics[keys.KL].item() == pytest.approx(expected)


def test_the_mean_of_k3_under_the_policy_is_the_kl_divergence():
    rng = np.random.default_rng(0)
    policy, reference = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    k3 = k3_divergence(torch.tensor(policy).log(), torch.tensor(reference).log())
    assert (k3 >= 0).all()
    assert (torch.tensor(policy) * k3).sum().item() == pytest.approx((policy * np.log(policy / reference)).sum())


def test_a_penalty_without_a_reference_is_refused():
    lp, old, advantages, mask, _ = batch(9)
    loss = GRPOLoss(beta=0.1)
    assert loss.needs_reference and not GRPOLoss().needs_reference
    with pytest.raises(ValueError, match="ref_logprobs: got None"):
        loss(lp, old, advantages, mask)


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_a_beta_that_is_none_is_refused(beta):
    with pytest.raises(UserError, match="beta: got"):
        GRPOLoss(beta=beta)


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"epsilon": 1.5}, {"epsilon_high": 0.0}, {"epsilon": math.nan}])
def test_a_clip_range_that_is_none_is_refused(bad):
    with pytest.raises(UserError, match="clip range: got"):
        GRPOLoss(**bad)


def test_in_float32_splitting_moves_the_gradient_by_less_than_1e_minus_5():
    tensors = [tensor.float() if tensor.is_floating_point() else tensor for tensor in batch(10, n_rows=16, length=40)]
    loss = GRPOLoss(beta=0.04)
    _, whole = value_and_gradient(loss, *tensors)
    parts = [
        value_and_gradient(loss, *part, denominator=16)[1] for part in zip(*(t.split(3) for t in tensors), strict=True)
    ]
    assert (torch.cat(parts) - whole).norm() < 1e-5 * whole.norm()
