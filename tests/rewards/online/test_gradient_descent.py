import io

import numpy as np
import pytest
import torch
from helpers.preference_reference import comparisons, gradient

from grpovi_lightning.errors import UserError
from grpovi_lightning.rewards.online import ConstantRate, InverseSquareRootRate, StochasticGradientDescent


@pytest.mark.parametrize(
    ("rate", "sizes"),
    [(ConstantRate(0.5), [0.5, 0.5, 0.5]), (InverseSquareRootRate(0.5), [0.5, 0.5 / 2**0.5, 0.5 / 3**0.5])],
)
def test_a_round_goes_against_the_sum_of_its_gradients(rate, sizes):
    z, y, _ = comparisons(30, 4)
    estimator, theta = StochasticGradientDescent(4, rate), np.zeros(4)
    for begin, size in zip(range(0, 30, 10), sizes, strict=True):
        rows, labels = z[begin : begin + 10], y[begin : begin + 10]
        estimator.update(rows, labels)
        theta = theta - size * gradient(rows.numpy(), labels.numpy(), theta)
        np.testing.assert_allclose(estimator.theta, theta, rtol=1e-13)
    assert estimator.n_pairs == 30 and estimator.n_rounds == 3


def test_a_restored_estimator_goes_on_to_the_last_bit_with_the_rate_of_its_round():
    z, y, _ = comparisons(40, 4, seed=1)
    whole = StochasticGradientDescent(4, InverseSquareRootRate(0.3))
    first = StochasticGradientDescent(4, InverseSquareRootRate(0.3))
    for begin in range(0, 40, 10):
        whole.update(z[begin : begin + 10], y[begin : begin + 10])
    for begin in (0, 10):
        first.update(z[begin : begin + 10], y[begin : begin + 10])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    restored = StochasticGradientDescent(4, InverseSquareRootRate(0.3))
    restored.load_state_dict(torch.load(file, weights_only=True))
    for begin in (20, 30):
        restored.update(z[begin : begin + 10], y[begin : begin + 10])
    assert torch.equal(restored.theta, whole.theta) and restored.n_rounds == 4


def test_only_theta_is_kept():
    z, y, _ = comparisons(100, 4)
    estimator = StochasticGradientDescent(4, ConstantRate(0.1))
    estimator.update(z, y)
    assert estimator.state_bytes == 4 * 8


def test_a_step_that_overflows_is_refused_and_nothing_has_changed():
    estimator = StochasticGradientDescent(1, ConstantRate(1e200))
    with pytest.raises(UserError, match=r"round 1: got a theta that is not finite with rate 1e\+200; lower the rate"):
        estimator.update(torch.tensor([[1e200]], dtype=torch.float64), torch.ones(1))
    assert not estimator.theta.any() and estimator.n_rounds == estimator.n_pairs == 0


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [ConstantRate, InverseSquareRootRate])
def test_a_rate_that_is_not_positive_and_finite_is_refused(kind, rate):
    with pytest.raises(UserError, match=r"rate: got .*, expected a positive, finite number"):
        kind(rate)
