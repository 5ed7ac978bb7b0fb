"""What the estimators measure and where their gradients pull, in exact expectation over a small categorical."""

import math

import numpy as np
import pytest
import torch
from helpers import grpo_reference
from losses.loss_batches import LOSSES, computed, random_batch

from grpovi_lightning import metric_keys as keys
from grpovi_lightning.losses import K1, K2, K3, K3Plus, KLEstimator

ESTIMATORS = {"k1": K1(), "k2": K2(), "k3": K3(), "k3+": K3Plus()}


def categorical(seed, n=6, distance=1.0):
    """(logits, log-probabilities of a reference), float64."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=n)
    reference = torch.tensor(logits + distance * rng.normal(size=n)).log_softmax(0)
    return torch.tensor(logits).requires_grad_(), reference


def expected_penalty_gradient(estimator, logits, reference):
    """Mean over the policy's own samples of the gradient of the penalty: the samples are not differentiated."""
    logprobs = logits.log_softmax(0)
    return torch.autograd.grad((logprobs.exp().detach() * estimator(logprobs, reference)).sum(), logits)[0]


def divergence_gradient(logits, reference, reverse=False):
    """Of KL(policy || reference), or of KL(reference || policy)."""
    logprobs = logits.log_softmax(0)
    p, q = (reference, logprobs) if reverse else (logprobs, reference)
    return torch.autograd.grad((p.exp() * (p - q)).sum(), logits)[0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_values_are_those_of_the_formulas(name):
    rng = np.random.default_rng(1)
    lp, ref = -rng.exponential(2.0, 50), -rng.exponential(2.0, 50)
    value, derivative = grpo_reference.KL_TERMS[name]
    logprobs = torch.tensor(lp).requires_grad_()
    estimate = ESTIMATORS[name](logprobs, torch.tensor(ref))
    np.testing.assert_allclose(estimate.detach(), [value(*pair) for pair in zip(lp, ref, strict=True)], atol=1e-13)
    estimate.sum().backward()
    np.testing.assert_allclose(logprobs.grad, [derivative(*pair) for pair in zip(lp, ref, strict=True)], atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed):
    logits, reference = categorical(seed)
    logprobs = logits.detach().log_softmax(0)
    divergence = (logprobs.exp() * (logprobs - reference)).sum().item()
    means = {name: (logprobs.exp() * kl(logprobs, reference)).sum().item() for name, kl in ESTIMATORS.items()}
    assert means["k1"] == pytest.approx(divergence, rel=1e-12)
    assert means["k3"] == means["k3+"] == pytest.approx(divergence, rel=1e-12)
    assert abs(means["k2"] - divergence) > 0.01 * divergence


@pytest.mark.parametrize("seed", range(5))
def test_k1_as_a_penalty_does_not_pull(seed):
    gradient = expected_penalty_gradient(K1(), *categorical(seed))
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-15, rtol=0)


@pytest.mark.parametrize("estimator", [K2, K3Plus])
@pytest.mark.parametrize("seed", range(5))
def test_k2_as_a_penalty_pulls_like_the_divergence_from_policy_to_reference(seed, estimator):
    case = categorical(seed)
    torch.testing.assert_close(expected_penalty_gradient(estimator(), *case), divergence_gradient(*case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_plus_is_k3_in_value_and_k2_in_gradient_to_the_last_bit(dtype):
    lp = -torch.tensor(np.random.default_rng(4).exponential(3.0, 200), dtype=dtype)
    ref = -torch.tensor(np.random.default_rng(5).exponential(3.0, 200), dtype=dtype)
    found = {}
    for estimator in (K2, K3, K3Plus):
        leaf = lp.clone().requires_grad_()
        value = estimator()(leaf, ref)
        found[estimator] = value.detach(), *torch.autograd.grad(value.sum(), leaf)
    assert torch.equal(found[K3Plus][0], found[K3][0]) and torch.equal(found[K3Plus][1], found[K2][1])
    assert not torch.equal(found[K3Plus][1], found[K3][1])


@pytest.mark.parametrize("seed", range(5))
def test_k3_as_a_penalty_pulls_like_the_divergence_in_the_other_direction(seed):
    case = categorical(seed)
    gradient = expected_penalty_gradient(K3(), *case)
    torch.testing.assert_close(gradient, divergence_gradient(*case, reverse=True))
    assert (gradient - divergence_gradient(*case)).norm() > 0.05 * gradient.norm()


def test_near_the_reference_k2_and_k3_differ_in_second_order_only():
    def difference(distance):
        case = categorical(3, distance=distance)
        return (expected_penalty_gradient(K2(), *case) - expected_penalty_gradient(K3(), *case)).norm().item()

    assert difference(1e-3) / difference(1e-2) == pytest.approx(1e-2, rel=0.05)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_metric_is_the_mean_of_k3_whatever_is_penalised(name, estimator):
    batch = random_batch(2)
    kept = [(b, t) for b, t in np.ndindex(*batch.completion_mask.shape) if batch.completion_mask[b, t]]
    expected = np.mean([grpo_reference.k3(batch.logprobs[i].item(), batch.ref_logprobs[i].item()) for i in kept])
    for beta in (0.0, 0.5):
        metrics = computed(LOSSES[name](beta=beta, kl=ESTIMATORS[estimator]), batch).metrics
        assert metrics[keys.KL].item() == pytest.approx(expected, rel=1e-12)
    assert keys.KL not in computed(LOSSES[name](), batch._replace(ref_logprobs=None)).metrics


def test_small_differences_keep_their_digits_in_float32():
    lp = torch.tensor([-1.0])
    ref = lp + 2.0**-12
    assert K3()(lp, ref).item() == pytest.approx(2.0**-25, rel=1e-3)
    assert (ref - lp).exp().item() - (ref - lp).item() - 1 != pytest.approx(2.0**-25, rel=1e-3)


def test_an_estimator_of_ones_own_needs_no_other_change():
    class Absolute(KLEstimator):
        def __call__(self, logprobs, ref_logprobs):
            return (logprobs - ref_logprobs).abs()

    batch = random_batch(3)
    plain, penalised = LOSSES["bnpo"]()(*batch).loss, LOSSES["bnpo"](beta=0.5, kl=Absolute())(*batch).loss
    mean = (batch.logprobs - batch.ref_logprobs).abs()[batch.completion_mask].mean()
    assert (penalised - plain).item() == pytest.approx(0.5 * mean.item())
    assert math.isfinite(penalised)
