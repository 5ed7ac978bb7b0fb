import numpy as np
import pytest
import torch
from helpers.preference_reference import comparisons, gradient, sigmoid
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from grpovi_lightning.rewards.online import ImplicitMirrorDescent, OnlineMirrorDescent


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 15),
    eta=st.sampled_from([0.1, 1.0, 30.0]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_gradient_of_the_objective_is_0_at_the_new_point(seed, size, eta, scale):
    # 6 features: rounds of more pairs are solved in the space of the features.
    z, y, _ = comparisons(3 * size, 6, seed=seed, scale=scale)
    estimator = ImplicitMirrorDescent(6, eta=eta, lam=0.5)
    for begin in range(0, 3 * size, size):
        theta, h = estimator.theta.numpy(), np.linalg.inv(estimator.inverse.numpy())
        rows, labels = z[begin : begin + size], y[begin : begin + size]
        estimator.update(rows, labels)
        slope = gradient(rows.numpy(), labels.numpy(), estimator.theta.numpy())
        left = slope + h @ (estimator.theta.numpy() - theta) / eta
        assert np.abs(left).max() < 1e-9 * scale * size


def test_the_new_point_is_the_minimum_that_another_optimiser_finds():
    z, y, _ = comparisons(20, 4, seed=1, scale=2.0)
    estimator = ImplicitMirrorDescent(4, eta=2.0, lam=0.3)
    estimator.update(z[:10], y[:10])
    start, h = estimator.theta.numpy(), np.linalg.inv(estimator.inverse.numpy())
    rows, labels = z[10:].numpy(), y[10:].numpy()

    def objective(theta):
        p = sigmoid(rows @ theta)
        loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum()
        return loss + (theta - start) @ h @ (theta - start) / 4.0

    estimator.update(z[10:], y[10:])
    found = minimize(objective, start, method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(estimator.theta, found.x, atol=1e-5)
    assert objective(estimator.theta.numpy()) <= objective(found.x) + 1e-12


def test_a_pair_is_solved_where_newtons_full_steps_would_run_away():
    # The margin starts at about -24 with the wrong sign; the root of c + eta (sigmoid(m - c q) - y) lies far off.
    estimator = ImplicitMirrorDescent(1, lam=1e-3, eta=50.0)
    z = torch.tensor([[3.0]], dtype=torch.float64)
    for label in (1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0):
        theta, inverse = estimator.theta.item(), estimator.inverse.item()
        estimator.update(z, torch.tensor([label]))
        new = estimator.theta.item()
        moved = theta - 50.0 * inverse * 3.0 * (sigmoid(3.0 * new) - label)
        assert new == pytest.approx(moved, rel=1e-10)


def test_a_round_of_one_repeated_pair_is_solved():
    estimator = ImplicitMirrorDescent(3)
    z = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64).expand(8, 3)
    estimator.update(z, torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 0]))
    theta = estimator.theta.numpy()
    labels = np.array([1.0, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(theta + gradient(z.numpy(), labels, theta), 0.0, atol=1e-12)


def test_small_steps_are_those_of_the_second_order_model():
    z, y, _ = comparisons(100, 4, seed=6)
    thetas = []
    for method in (ImplicitMirrorDescent, OnlineMirrorDescent):
        estimator = method(4, lam=1e4)
        for begin in range(0, 100, 10):
            estimator.update(z[begin : begin + 10], y[begin : begin + 10])
        thetas.append(estimator.theta)
    torch.testing.assert_close(thetas[0], thetas[1], rtol=1e-5, atol=0)


def test_a_bound_is_kept():
    z, y, _ = comparisons(60, 5, seed=2, norm=20.0, scale=1.0)
    estimator = ImplicitMirrorDescent(5, lam=0.1, radius=0.5)
    for begin in range(0, 60, 6):
        estimator.update(z[begin : begin + 6], y[begin : begin + 6])
        assert estimator.theta.norm() <= 0.5 * (1 + 1e-12)
    assert estimator.theta.norm() == pytest.approx(0.5)
