import io

import numpy as np
import pytest
import torch
from helpers.preference_reference import comparisons, gradient, hessian, newton
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.rewards.online import MaximumLikelihood, OnlineMirrorDescent, maximum_likelihood


def learned(estimator, z, y, size):
    for begin in range(0, len(z), size):
        estimator.update(z[begin : begin + size], y[begin : begin + size])
    return estimator


@pytest.mark.parametrize("warm_start", [True, False])
@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_every_round_ends_at_the_maximum_that_newtons_method_finds(lam, warm_start):
    z, y, _ = comparisons(120, 8, norm=6.0, scale=1.0)
    estimator = MaximumLikelihood(8, lam, warm_start)
    for begin in range(0, 120, 40):
        estimator.update(z[begin : begin + 40], y[begin : begin + 40])
        seen = slice(0, begin + 40)
        expected = newton(z[seen].numpy(), y[seen].numpy(), lam)
        np.testing.assert_allclose(estimator.theta, expected, atol=1e-5)
        h = lam * np.eye(8) + hessian(z[seen].numpy(), estimator.theta.numpy())
        np.testing.assert_allclose(estimator.inverse, np.linalg.inv(h), rtol=1e-9, atol=1e-12)


def test_the_rounds_do_not_matter_but_the_pairs():
    z, y, _ = comparisons(90, 5, seed=1)
    ones, tens = learned(MaximumLikelihood(5), z, y, 1), learned(MaximumLikelihood(5), z, y, 10)
    torch.testing.assert_close(ones.theta, tens.theta, rtol=0, atol=1e-6)
    assert ones.n_pairs == tens.n_pairs == 90


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_large_and_small_features_are_fitted_to_the_same_relative_accuracy(scale):
    z, y, _ = comparisons(300, 5, seed=3)
    estimator = learned(MaximumLikelihood(5, lam=scale**2), z * scale, y, 100)
    expected = newton(z.numpy(), y.numpy(), 1.0)
    np.testing.assert_allclose(estimator.theta * scale, expected, atol=1e-5)


def test_separable_pairs_have_a_finite_maximum():
    z = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    estimator = learned(MaximumLikelihood(2, lam=1e-3), z, torch.ones(2), 2)
    theta = estimator.theta.numpy()
    np.testing.assert_allclose(1e-3 * theta + gradient(z.numpy(), np.ones(2), theta), 0.0, atol=1e-7)


def test_pairs_without_a_difference_leave_theta_at_0():
    estimator = MaximumLikelihood(3)
    estimator.update(torch.zeros(4, 3), torch.ones(4))
    assert not estimator.theta.any() and estimator.n_pairs == 4


def test_the_inverse_belongs_to_the_latest_theta():
    z, y, _ = comparisons(40, 3, seed=2)
    estimator = learned(MaximumLikelihood(3), z[:20], y[:20], 20)
    before = estimator.inverse
    assert estimator.inverse is before  # computed once
    estimator.update(z[20:], y[20:])
    assert (estimator.inverse.diagonal() < before.diagonal()).all()


def test_a_restored_estimator_goes_on_to_the_last_bit():
    z, y, _ = comparisons(90, 6, seed=4)
    whole = learned(MaximumLikelihood(6), z, y, 10)
    first = learned(MaximumLikelihood(6), z[:50], y[:50], 10)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    # theta and 50 pairs of 6 features and a label; the room behind them stays out of the file.
    assert first.state_bytes == (6 + 50 * 7) * 8
    assert file.tell() < first.state_bytes + 4000
    file.seek(0)
    restored = MaximumLikelihood(6)
    restored.load_state_dict(torch.load(file, weights_only=True))
    learned(restored, z[50:], y[50:], 10)
    assert torch.equal(restored.theta, whole.theta) and torch.equal(restored.inverse, whole.inverse)
    assert restored.n_pairs == 90 and len(restored.state_dict()["z"]) == 90


def test_a_fit_that_does_not_converge_is_an_error_and_learns_nothing(monkeypatch):
    z, y, _ = comparisons(60, 6, seed=5)
    estimator = learned(MaximumLikelihood(6), z[:30], y[:30], 30)
    before, inverse = estimator.state_dict(), estimator.inverse
    with monkeypatch.context() as patch:
        patch.setattr(maximum_likelihood, "MAX_ITERATIONS", 1)
        with pytest.raises(TrainingError, match=r"fit on 60 pairs: got a gradient of .* after 1 iterations of L-BFGS"):
            estimator.update(z[30:], y[30:])
    after = estimator.state_dict()
    assert all(torch.equal(torch.as_tensor(after[name]), torch.as_tensor(before[name])) for name in before)
    assert torch.equal(estimator.inverse, inverse)
    estimator.update(z[30:], y[30:])
    np.testing.assert_allclose(estimator.theta, newton(z.numpy(), y.numpy(), 1.0), atol=1e-6)


@given(exponent=st.integers(-12, -1), lam=st.sampled_from([0.1, 1.0, 10.0]), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_fit_leaves_no_more_gradient_than_the_tolerance_or_what_rounding_allows(exponent, lam, scale):
    z, y, _ = comparisons(80, 6, seed=7)
    z, lam = z.numpy() * scale, lam * scale**2
    estimator = MaximumLikelihood(6, lam, tolerance=10.0**exponent)
    estimator.update(torch.from_numpy(z), y)
    left = np.abs(lam * estimator.theta.numpy() + gradient(z, y.numpy(), estimator.theta.numpy())).max()
    bound = np.linalg.norm(z, axis=1).sum()
    assert left <= 1.001 * max(10.0**exponent, 1e-7) * bound


def test_a_looser_fit_ends_further_from_the_minimum_and_stays_where_it_is_near_enough():
    z, y, _ = comparisons(300, 8, seed=8, norm=6.0, scale=1.0)
    minimum = newton(z.numpy(), y.numpy(), 1.0)
    distances = []
    for tolerance in (1e-9, 1e-4, 1e-2):
        theta = learned(MaximumLikelihood(8, tolerance=tolerance), z, y, 300).theta.numpy()
        distances.append(np.linalg.norm(theta - minimum) / np.linalg.norm(minimum))
    assert distances[0] < 1e-6 < distances[1] < 0.01 < distances[2] < 0.5
    loose = learned(MaximumLikelihood(8, tolerance=1e-2), z[:299], y[:299], 299)
    before = loose.theta
    loose.update(z[299], y[299])
    assert torch.equal(loose.theta, before) and loose.n_pairs == 300


@pytest.mark.parametrize("value", [0.0, -1e-9, 1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_share_is_refused(value):
    with pytest.raises(UserError, match=r"tolerance: got .*, expected a number between 0 and 1"):
        MaximumLikelihood(3, tolerance=value)


def test_the_state_is_given_and_counted_without_a_copy_of_the_history():
    z, y, _ = comparisons(2000, 50, seed=9)
    estimator = MaximumLikelihood(50, tolerance=1e-3)
    estimator.update(z, y)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        state, size = estimator.state_dict(), estimator.state_bytes
    assert size == sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor)) > 2000 * 50 * 8
    assert max((event.cpu_memory_usage for event in seen.events()), default=0) < 1000


def test_a_state_stays_as_it_was_when_more_is_learned():
    z, y, _ = comparisons(40, 3, seed=9)
    estimator = MaximumLikelihood(3)
    estimator.update(z[:20], y[:20])
    state = estimator.state_dict()
    estimator.update(z[20:], y[20:])
    assert torch.equal(state["z"], z[:20].double()) and torch.equal(state["y"], y[:20].double())


def test_one_pass_comes_close_to_the_refit():
    z, y, _ = comparisons(2000, 10, seed=6)
    refit = learned(MaximumLikelihood(10), z, y, 500)
    one_pass = learned(OnlineMirrorDescent(10), z, y, 10)
    difference = one_pass.theta - refit.theta
    # In the norm of H, in which an estimate of 10 numbers lies about sqrt(10) from the truth.
    assert difference @ torch.linalg.inv(refit.inverse) @ difference < 0.1**2 * 10
