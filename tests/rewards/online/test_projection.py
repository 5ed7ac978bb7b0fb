import numpy as np
import pytest
import torch
from helpers.preference_reference import comparisons, gradient, hessian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from grpovi_lightning.rewards.online import OnlineMirrorDescent
from grpovi_lightning.rewards.online.mirror_descent import project


def problem(seed, dim, spread):
    """A point and a positive definite matrix whose eigenvalues span `spread` decades."""
    random = np.random.default_rng(seed)
    vectors = np.linalg.qr(random.standard_normal((dim, dim)))[0]
    eigenvalues = 10.0 ** random.uniform(-spread / 2, spread / 2, dim)
    h = (vectors * eigenvalues) @ vectors.T
    return random.standard_normal(dim), (h + h.T) / 2


@given(
    seed=st.integers(0, 10**6),
    dim=st.integers(1, 8),
    spread=st.floats(0, 6),
    share=st.floats(1e-3, 0.999),
)
@settings(max_examples=100, deadline=None)
def test_the_projection_satisfies_the_conditions_of_the_optimum(seed, dim, spread, share):
    point, h = problem(seed, dim, spread)
    radius = share * np.linalg.norm(point)
    found = project(torch.from_numpy(point), torch.from_numpy(np.linalg.inv(h)), radius).numpy()
    # On the sphere, and H (theta - x) = mu x for some mu >= 0.
    assert np.linalg.norm(found) == pytest.approx(radius, rel=1e-12)
    pull = h @ (point - found)
    mu = pull @ found / radius**2
    assert mu >= 0
    np.testing.assert_allclose(pull, mu * found, atol=1e-7 * np.abs(h).max() * np.abs(point).max())


@pytest.mark.parametrize("seed", range(5))
def test_no_other_optimiser_finds_a_nearer_point_of_the_ball(seed):
    point, h = problem(seed, 5, 2.0)
    radius = 0.5 * np.linalg.norm(point)
    found = project(torch.from_numpy(point), torch.from_numpy(np.linalg.inv(h)), radius).numpy()

    def distance(x):
        return (x - point) @ h @ (x - point)

    other = minimize(
        distance,
        point * 0.4,
        jac=lambda x: 2 * h @ (x - point),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: radius**2 - x @ x, "jac": lambda x: -2 * x},
        options={"ftol": 1e-11, "maxiter": 1000},
    )
    assert other.success
    np.testing.assert_allclose(found, other.x, atol=1e-4)
    assert distance(found) <= distance(other.x) * (1 + 1e-9)
    assert distance(found) < 0.99 * distance(point * radius / np.linalg.norm(point))  # shortening alone is not it


@pytest.mark.parametrize("size", [1, 4, 10])
def test_a_round_that_leaves_the_ball_is_projected_in_the_norm_of_the_look_ahead_hessian(size):
    dim, eta, radius = 6, 1.5, 0.2
    z, y, _ = comparisons(size * 6, dim, seed=size, scale=2.0, norm=10.0)
    estimator = OnlineMirrorDescent(dim, eta=eta, lam=0.1, radius=radius)
    bounded = 0
    for begin in range(0, len(z), size):
        rows, labels = z[begin : begin + size].numpy(), y[begin : begin + size].numpy()
        theta, h = estimator.theta.numpy(), np.linalg.inv(estimator.inverse.numpy())
        ahead = h + eta * hessian(rows, theta)
        free = theta - eta * np.linalg.solve(ahead, gradient(rows, labels, theta))
        estimator.update(z[begin : begin + size], y[begin : begin + size])
        found = estimator.theta.numpy()
        np.testing.assert_allclose(np.linalg.inv(estimator.inverse.numpy()), h + hessian(rows, found), rtol=1e-8)
        if np.linalg.norm(free) <= radius:
            np.testing.assert_allclose(found, free, rtol=1e-10)
            continue
        bounded += 1
        assert np.linalg.norm(found) == pytest.approx(radius, rel=1e-12)
        pull = ahead @ (free - found)
        np.testing.assert_allclose(pull, (pull @ found / radius**2) * found, rtol=1e-8, atol=1e-10)
    assert bounded


def test_a_wide_ball_changes_no_bit():
    z, y, _ = comparisons(40, 5, seed=8)
    plain, wide = OnlineMirrorDescent(5), OnlineMirrorDescent(5, radius=1e3)
    for begin in range(0, 40, 8):
        plain.update(z[begin : begin + 8], y[begin : begin + 8])
        wide.update(z[begin : begin + 8], y[begin : begin + 8])
    assert torch.equal(plain.theta, wide.theta) and torch.equal(plain.inverse, wide.inverse)


def test_an_inverse_that_rounding_left_indefinite_is_still_projected():
    inverse = torch.diag(torch.tensor([1.0, 1e-3, -1e-18], dtype=torch.float64))
    found = project(torch.tensor([3.0, 3.0, 0.1], dtype=torch.float64), inverse, 1.0)
    assert found.norm().item() == pytest.approx(1.0, rel=1e-12)
