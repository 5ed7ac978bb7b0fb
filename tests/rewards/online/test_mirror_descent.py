import io

import numpy as np
import pytest
import torch
from helpers.preference_reference import comparisons, hessian, mirror_descent_round, sigmoid
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from grpovi_lightning.rewards.online import ImplicitMirrorDescent, OnlineMirrorDescent

METHODS = pytest.mark.parametrize("method", [OnlineMirrorDescent, ImplicitMirrorDescent])


def learned(estimator, z, y, size):
    for begin in range(0, len(z), size):
        estimator.update(z[begin : begin + size], y[begin : begin + size])
    return estimator


def relative(found, expected):
    return (np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()).item()


@pytest.mark.parametrize("size", [1, 3, 32, 50])
@pytest.mark.parametrize("eta", [0.3, 1.0, 4.0])
def test_rounds_are_those_of_algorithm_1_with_dense_matrices(size, eta):
    # 20 features: rounds of 32 and 50 have more pairs than that.
    z, y, _ = comparisons(100, 20, seed=size, norm=8.0)
    estimator = OnlineMirrorDescent(20, eta=eta, lam=0.5)
    h, theta = 0.5 * np.eye(20), np.zeros(20)
    for begin in range(0, 100, size):
        pairs = slice(begin, begin + size)
        estimator.update(z[pairs], y[pairs])
        h, theta = mirror_descent_round(h, theta, z[pairs].numpy(), y[pairs].numpy(), eta)
        assert relative(estimator.theta, theta) < 1e-12
        assert relative(estimator.inverse, np.linalg.inv(h)) < 1e-12
    assert estimator.n_pairs == 100


def test_one_pair_is_the_closed_form_of_the_paper():
    z, y, _ = comparisons(2, 5, seed=3)
    estimator = OnlineMirrorDescent(5, eta=2.0, lam=4.0)
    estimator.update(z[0], y[0])
    theta, inverse = estimator.theta.clone(), estimator.inverse.clone()
    estimator.update(z[1], y[1])
    row, p = z[1], torch.sigmoid(z[1] @ theta)
    q = row @ inverse @ row
    moved = theta - 2.0 * (p - y[1]) * (inverse @ row) / (1 + 2.0 * p * (1 - p) * q)
    torch.testing.assert_close(estimator.theta, moved, rtol=1e-13, atol=0)
    new = torch.sigmoid(row @ moved)
    weight = new * (1 - new)
    down = weight / (1 + weight * q) * torch.outer(inverse @ row, row @ inverse)
    torch.testing.assert_close(estimator.inverse, inverse - down, rtol=1e-12, atol=1e-15)


@METHODS
@pytest.mark.parametrize("size", [1, 32])
def test_after_4000_pairs_the_inverse_is_that_of_the_accumulated_hessian(method, size):
    scale = np.arange(1, 97) ** -0.5
    z, y, _ = comparisons(4000, 96, scale=scale / np.linalg.norm(scale), norm=20.0)
    estimator = method(96, lam=0.1)
    h = 0.1 * np.eye(96)
    for begin in range(0, 4000, size):
        pairs = slice(begin, begin + size)
        estimator.update(z[pairs], y[pairs])
        rows = z[pairs].numpy()
        p = sigmoid(rows @ estimator.theta.numpy())
        h += (rows.T * (p * (1 - p))) @ rows
    error = relative(estimator.inverse, np.linalg.inv(h))
    print(f"{method.__name__}, rounds of {size}: relative error of the inverse {error:.1e}")
    assert error < 1e-9
    assert torch.equal(estimator.inverse, estimator.inverse.T)


@METHODS
def test_rounds_of_1_and_of_32_predict_held_out_pairs_alike(method):
    # 64 features, of which the first matter most; 4,000 pairs to learn from and 4,000 held out.
    scale = np.arange(1, 65) ** -0.5
    z, y, _ = comparisons(8000, 64, scale=scale / np.linalg.norm(scale), norm=12.0)
    losses = []
    for size in (1, 32):
        estimator = learned(method(64), z[:4000], y[:4000], size)
        losses.append(binary_cross_entropy_with_logits(estimator.reward(z[4000:]), y[4000:]).item())
    print(f"{method.__name__}: held-out cross-entropy {losses[0]:.5f} in rounds of 1, {losses[1]:.5f} of 32")
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0] < 0.62  # log 2 is 0.693


@METHODS
@given(seed=st.integers(0, 10**6), size=st.integers(2, 12), radius=st.sampled_from([None, 0.3]))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_pairs_of_a_round_does_not_matter(method, seed, size, radius):
    z, y, _ = comparisons(2 * size, 6, seed=seed, scale=1.0)
    plain, shuffled = method(6, radius=radius), method(6, radius=radius)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    for begin in (0, size):
        rows, labels = z[begin : begin + size], y[begin : begin + size]
        plain.update(rows, labels)
        shuffled.update(rows[order], labels[order])
    torch.testing.assert_close(shuffled.theta, plain.theta, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(shuffled.inverse, plain.inverse, rtol=1e-11, atol=1e-12)


@METHODS
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), radius=st.sampled_from([None, 0.3]))
@settings(max_examples=30, deadline=None)
def test_rotated_features_give_a_rotated_theta_and_the_same_rewards(method, seed, size, radius):
    z, y, _ = comparisons(3 * size, 6, seed=seed, scale=1.0)
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0])
    plain = learned(method(6, radius=radius), z, y, size)
    rotated = learned(method(6, radius=radius), z @ rotation.T, y, size)
    torch.testing.assert_close(rotated.theta, rotation @ plain.theta, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(rotated.uncertainty(z @ rotation.T), plain.uncertainty(z), rtol=1e-10, atol=1e-11)


@METHODS
def test_swapping_the_two_completions_and_the_label_changes_nothing(method):
    z, y, _ = comparisons(40, 6, seed=5)
    plain, swapped = learned(method(6), z, y, 4), learned(method(6), -z, 1 - y, 4)
    torch.testing.assert_close(swapped.theta, plain.theta, rtol=1e-13, atol=1e-15)


@METHODS
@pytest.mark.parametrize("size", [1, 4])
def test_a_restored_estimator_goes_on_to_the_last_bit(method, size):
    z, y, _ = comparisons(80, 7, seed=9, norm=30.0)
    whole = learned(method(7, radius=2.0), z, y, size)
    first = learned(method(7, radius=2.0), z[:40], y[:40], size)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    learned(first, z[40:], y[40:], size)  # what was saved must not move with the estimator that goes on
    file.seek(0)
    restored = method(7, radius=2.0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.n_pairs == 40
    learned(restored, z[40:], y[40:], size)
    for name, value in whole.state_dict().items():
        found = restored.state_dict()[name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def test_a_state_is_a_snapshot():
    z, y, _ = comparisons(64, 7)
    for size in (1, 4):
        estimator = learned(OnlineMirrorDescent(7), z[:32], y[:32], size)
        state = estimator.state_dict()
        kept = {name: torch.as_tensor(value).clone() for name, value in state.items()}
        learned(estimator, z[32:], y[32:], size)
        assert all(torch.equal(torch.as_tensor(state[name]), kept[name]) for name in kept)


def test_the_state_is_as_small_after_many_pairs_as_after_one():
    z, y, _ = comparisons(200, 7)
    estimator = OnlineMirrorDescent(7)
    estimator.update(z[0], y[0])
    before = estimator.state_bytes
    assert learned(estimator, z, y, 5).state_bytes == before == (7 + 49) * 8


def test_kappa_is_the_largest_so_far_at_the_prediction_before_the_update():
    z, y, _ = comparisons(60, 4, seed=2, norm=40.0)
    estimator, seen = OnlineMirrorDescent(4, lam=0.01), [4.0]
    assert estimator.kappa == 4.0
    for begin in range(0, 60, 3):
        rows = z[begin : begin + 3]
        margins = rows.numpy() @ estimator.theta.numpy()
        seen.append(max(seen[-1], (1 / (sigmoid(margins) * sigmoid(-margins))).max().item()))
        estimator.update(rows, y[begin : begin + 3])
        assert estimator.kappa == pytest.approx(seen[-1], rel=1e-12)
    assert seen[-1] > 20.0


@METHODS
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_predictions_that_are_certain_and_wrong_or_right_are_no_trouble(method, label):
    estimator = method(2, lam=1e-6)
    z = torch.tensor([[1000.0, 1.0]], dtype=torch.float64)
    for _ in range(5):
        estimator.update(z, torch.ones(1))
    estimator.update(z, torch.tensor([label]))
    estimator.update(z.expand(5, 2), torch.full((5,), label))
    assert estimator.theta.isfinite().all() and estimator.inverse.isfinite().all()
    assert torch.linalg.eigvalsh(estimator.inverse).min() > 0


def test_pairs_without_a_difference_change_nothing():
    for method in (OnlineMirrorDescent, ImplicitMirrorDescent):
        estimator = method(3, lam=2.0)
        estimator.update(torch.zeros(5, 3), torch.ones(5))
        assert not estimator.theta.any()
        assert torch.equal(estimator.inverse, torch.eye(3, dtype=torch.float64) / 2.0)


def test_uncertainty_is_the_norm_in_the_inverse_and_pessimism_takes_it_off():
    z, y, _ = comparisons(30, 4, seed=1)
    estimator = learned(OnlineMirrorDescent(4), z, y, 10)
    inverse = estimator.inverse.numpy()
    expected = np.array([np.sqrt(row @ inverse @ row) for row in z.numpy()])
    np.testing.assert_allclose(estimator.uncertainty(z), expected, rtol=1e-13)
    pessimistic = z.numpy() @ estimator.theta.numpy() - 0.5 * expected
    np.testing.assert_allclose(estimator.pessimistic(z, 0.5), pessimistic, rtol=1e-12, atol=1e-13)
    assert estimator.uncertainty(z.view(5, 6, 4)).shape == (5, 6)


def test_the_hessian_of_a_round_is_taken_at_the_new_point():
    z, y, _ = comparisons(5, 3, seed=4, norm=10.0, scale=3.0)
    estimator = OnlineMirrorDescent(3, eta=0.7)
    estimator.update(z, y)
    new = np.eye(3) + hessian(z.numpy(), estimator.theta.numpy())
    old = np.eye(3) + hessian(z.numpy(), np.zeros(3))
    np.testing.assert_allclose(np.linalg.inv(estimator.inverse.numpy()), new, rtol=1e-10)
    assert relative(new, old) > 0.1
